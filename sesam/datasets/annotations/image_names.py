"""Which image of the data set a name in an annotation file means."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from sesam.artifacts.manifest import ImageRecord, UnusedImage
from sesam.datasets.data_issues import Issue, IssueKind

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
SUFFIX = re.compile(r"\.[A-Za-z]\w*$")  # not the .1 of scan.1
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix of uploads


class _Image(NamedTuple):
    """An image as names are compared with it. parents: the folders of its file above its id."""

    image_id: str
    id_parts: tuple[str, ...]
    parents: tuple[str, ...]
    is_train: bool


class ImageNames:
    """The images of all splits, and those that are not used, since a name may mean one that is not trained on."""

    def __init__(
        self, train: Sequence[ImageRecord], val: Sequence[ImageRecord] = (), unused: Sequence[UnusedImage] = ()
    ) -> None:
        self.by_last: dict[str, list[_Image]] = defaultdict(list)
        self.by_upload: dict[str, list[_Image]] = defaultdict(list)
        self.by_loose: dict[str, list[_Image]] = defaultdict(list)
        self.digests = {record.sha256 for record in (*train, *val)}
        self.train_ids = {record.id for record in train}
        self.val_ids = {record.id for record in val}
        self.split_folders: set[str] = set()
        for records, is_train in ((train, True), (val, False), (unused, False)):
            for record in records:
                image = _parse(record, is_train)
                self.by_last[image.id_parts[-1]].append(image)
                self.by_upload[_as_uploaded(image.id_parts[-1])].append(image)
                self.split_folders |= set(image.parents[-1:])
                id_parts, parents = tuple(map(_loosely, image.id_parts)), tuple(map(_loosely, image.parents))
                self.by_loose[id_parts[-1]].append(image._replace(id_parts=id_parts, parents=parents))

    def match(self, name: str, otherwise: str | None = None, is_url: bool = False) -> str | None:
        """The id of the training image that a name means: its path's longest agreement; None if it is not one.

        Folders in the name may be fewer than the image's file has, but the id's are all in it. otherwise: another name,
        tried if the first means no image of any split. is_url: of Label Studio.
        """
        spellings = [*_spellings(name, is_url)] + ([] if otherwise is None else [_split(otherwise)])
        if found := self._find(spellings):
            return found.image_id if found.is_train else None
        # an upload keeps no folder, so that only an id without folders is certain
        images = [image for image in self._uploads(name, is_url) if len(image.id_parts) == 1]
        is_certain = len({image.image_id for image in images}) == 1 and any(image.is_train for image in images)
        return images[0].image_id if is_certain else None

    def explain(self, names: Sequence[str]) -> dict[str, Issue]:
        """Issues, by name, of names of which none means a training image, but may have been meant to."""
        issues = dict[str, Issue]()
        for name in names:
            spellings = [*_spellings(name, is_url=True)]
            known = self._find(spellings)
            if known is not None and not known.is_train:
                continue
            if found := self.candidates(name):
                kind = IssueKind.FOLDERS if any("/" in k for k in found) else IssueKind.NAMES
                issues[name] = Issue(kind, f"{name}: {' or '.join(found)}")
            elif similar := self._find_similar(spellings):
                issues[name] = Issue(IssueKind.SPELLING, f"{name}: {similar}")
        return issues

    def _find_similar(self, spellings: Sequence[tuple[str, ...]]) -> str | None:
        """The id of the training image that one of these paths means `_loosely`, also without an upload's prefix."""
        *folders, last = spellings[-1]
        for *above, end in (*spellings, (*folders, UPLOADED.sub("", last))):
            images = [image for part in _last_parts(end) for image in self.by_loose.get(_loosely(part), ())]
            found = self._best((*map(_loosely, above), end), images)
            if found is not None and found.is_train:
                return found.image_id
        return None

    def candidates(self, name: str) -> list[str]:
        """The ids of images, one of them at least a training image, that a name or an upload of it may mean.

        Names have no folders, or too few. Uploads have neither folders nor blanks.
        """
        path = _split(name)
        images = [image for image in self._of_file(path[-1]) if image.id_parts[-len(path) : -1] == path[:-1]]
        images += self._uploads(name, is_url=True)
        is_trained = any(image.is_train for image in images)
        return list(dict.fromkeys(image.image_id for image in images)) if is_trained else []

    def _of_file(self, name: str) -> list[_Image]:
        return [image for last in _last_parts(name) for image in self.by_last.get(last, ())]

    def _uploads(self, name: str, is_url: bool) -> list[_Image]:
        """The images that an upload may be of; other formats that Label Studio exports have its names too."""
        *_, (*_, uploaded) = _spellings(name, is_url)
        stem = PurePosixPath(UPLOADED.sub("", uploaded)).stem
        return list(self.by_upload.get(stem, ())) if UPLOADED.match(uploaded) else []

    def _find(self, spellings: Iterable[tuple[str, ...]]) -> _Image | None:
        """The image of any split that the first of these paths means."""
        return next((found for path in spellings if (found := self._best(path, self._of_file(path[-1])))), None)

    def _best(self, path: tuple[str, ...], images: list[_Image]) -> _Image | None:
        ranked = []
        for image in images:
            count = len(image.id_parts)
            if path[-count:-1] != image.id_parts[:-1] or len(path) < count:
                continue
            agreement = 0
            for ours, theirs in zip(reversed(image.parents), reversed(path[:-count]), strict=False):
                if not _same_folder(ours, theirs):
                    break
                agreement += 1
            if agreement == 0 and self._is_other_split(path[:-count], image):
                continue
            ranked.append(((count + agreement, count, image.is_train), image))
        return max(ranked, key=lambda entry: entry[0])[1] if ranked else None

    def _is_other_split(self, above: tuple[str, ...], image: _Image) -> bool:
        """Whether the name's folder above the id is another split's, as images/val in images/val/7.png is."""
        if not above or not image.parents:
            return False
        known = above[-1] in self.split_folders or above[-1].lower() in SPLIT_ALIASES
        return known and (image.parents[-1] in self.split_folders or image.parents[-1].lower() in SPLIT_ALIASES)


def split_of(path: Path) -> str | None:
    """The split in a file's name, as instances_val2017.json has it, or in its folder's."""
    last = re.split(r"[_.-]", path.stem)[-1].rstrip("0123456789")
    return next((part for part in (last, path.parent.name) if part.lower() in SPLIT_ALIASES), None)


def _parse(record: ImageRecord | UnusedImage, is_train: bool) -> _Image:
    id_parts = tuple(normalize("NFC", record.id).split("/"))
    file_parts = tuple(normalize("NFC", record.image).split("/"))
    return _Image(record.id, id_parts, file_parts[: -len(id_parts)], is_train)


def _same_folder(ours: str, theirs: str) -> bool:
    return ours == theirs or (SPLIT_ALIASES.get(ours.lower(), ours) == SPLIT_ALIASES.get(theirs.lower(), theirs))


def _split(name: str) -> tuple[str, ...]:
    parts = normalize("NFC", name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".")) or ("",)


def _spellings(name: str, is_url: bool) -> Iterator[tuple[str, ...]]:
    """The name as it stands; then, of a URL, decoded, without a signature, and from ?d= on, its place on a disk."""
    yield _split(name)
    if is_url:
        yield _split(unquote(name).split("?d=")[-1])
        yield _split(unquote(name.split("?d=")[-1].split("?")[0]))


def _last_parts(name: str) -> Iterator[str]:
    """What of a file name may be the last part of an id: all, without its suffix, Cityscapes' without its ending."""
    stem = SUFFIX.sub("", name)
    yield from dict.fromkeys((name, stem, stem.removesuffix("_leftImg8bit")))


def _loosely(name: str) -> str:
    """A name in lower case, with _ in the place of blanks and -, and none of these at its ends."""
    return re.sub(r"[\s_-]+", "_", normalize("NFC", name).casefold()).strip("_")


def _as_uploaded(stem: str) -> str:
    """A file's stem as Label Studio stores uploads: blanks become _, and only letters, digits, - and . are kept."""
    return re.sub(r"[^-\w.]", "", stem.strip().replace(" ", "_"))
