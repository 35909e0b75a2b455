"""Where each kind of data set keeps its images and fine labels, and in which splits.

Paths are told as the maker lays them out, whether the files are there or not: `prepare` says what is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sesam.errors import SesamError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """An image and its fine label; None where there is no fine label. `id` names it in every artifact."""

    id: str
    image: Path
    label: Path | None


def find_pairs(kind: str, root: Path, splits: Sequence[str] | None, purpose: str) -> list[Pair]:
    """The pairs of the maker's splits, or of the usual ones for `purpose` (train or val), by id.

    SesamError if a folder or a list is missing or empty.
    """
    if not root.is_dir():
        raise SesamError(f"{root} (dataset.root) is no folder. Put the data set there, or set where it lies.")
    pairs, usual = LAYOUTS[kind]
    return sorted({pair for split in splits or [usual(root)[purpose]] for pair in pairs(root, split)}, key=_by_id)


def folder(root: Path, split: str) -> list[Pair]:
    """images/SPLIT/ID.{png,jpg,jpeg} and labels/SPLIT/ID.png; ID may have folders in it.

    Without labels/SPLIT there are no fine labels.
    """
    labels = root / "labels" / split
    return _match(root / "images" / split, "", IMAGE_SUFFIXES, labels if labels.is_dir() else None, "", nested=True)


def cityscapes(root: Path, split: str) -> list[Pair]:
    """Cordts et al. 2016: leftImg8bit/SPLIT/CITY/ID_leftImg8bit.png, gtFine/SPLIT/CITY/ID_gtFine_labelIds.png.

    train_extra has coarse labels only.
    """
    labels = None if split == "train_extra" else root / "gtFine" / split
    return _match(root / "leftImg8bit" / split, "_leftImg8bit", (".png",), labels, "_gtFine_labelIds")


def ade20k(root: Path, split: str) -> list[Pair]:
    """Zhou et al. 2017, the scene parsing challenge: images/SPLIT/ID.jpg and annotations/SPLIT/ID.png."""
    root = _inner(root, "ADEChallengeData2016")
    return _match(root / "images" / split, "", (".jpg",), root / "annotations" / split, "")


def voc(root: Path, split: str) -> list[Pair]:
    """Everingham et al. 2012: ImageSets/Segmentation/SPLIT.txt, JPEGImages/ID.jpg, SegmentationClass/ID.png.

    trainaug adds what Hariharan et al. 2011 labeled, SegmentationClassAug/ID.png, where VOC itself has no label.
    If no trainaug.txt came with it, it is train.txt with aug.txt, or with all that is labeled there and not in
    val.txt. With the list and without the folder those images have no fine labels.
    """
    root = _inner(root, "VOCdevkit/VOC2012", "VOC2012")
    lists, fine, more = root / "ImageSets/Segmentation", root / "SegmentationClass", root / "SegmentationClassAug"
    if split != "trainaug" or (lists / "trainaug.txt").exists():
        ids = _listed(lists / f"{split}.txt")
    elif not more.is_dir():
        raise SesamError(f"{root} has neither SegmentationClassAug nor {lists / 'trainaug.txt'} for split trainaug.")
    elif (lists / "aug.txt").exists():
        ids = _listed(lists / "train.txt") + _listed(lists / "aug.txt")
    else:
        ids = _listed(lists / "train.txt") + [path.stem for path in files_below(more) if path.suffix == ".png"]
    if split == "trainaug":
        ids = sorted(set(ids) - set(_listed(lists / "val.txt")))
    own = {path.stem for path in files_below(fine)}

    def label(k: str) -> Path | None:
        if k in own or split != "trainaug":
            return fine / f"{k}.png"
        return more / f"{k}.png" if more.is_dir() else None

    return [Pair(k, root / "JPEGImages" / f"{k}.jpg", label(k)) for k in ids]


def _usual_of_voc(root: Path) -> dict[str, str]:
    inner = _inner(root, "VOCdevkit/VOC2012", "VOC2012")
    more = (inner / "SegmentationClassAug").is_dir() or (inner / "ImageSets/Segmentation/trainaug.txt").exists()
    return {"train": "trainaug" if more else "train", "val": "val"}


def camvid(root: Path, split: str) -> list[Pair]:
    """CamVid (Brostow et al. 2009) as it is published, or in one of the forms that others gave it.

    701_StillsRaw_full/ID.png and LabeledApproved_full/ID_L.png, split as usual (Sturgess et al. 2009): 367 train,
    101 val, 233 test; SPLIT/ID.png with SPLITannot/ID.png or SPLIT_labels/ID_L.png; or images/SPLIT/ID.png with
    labels/SPLIT/ID.png.
    """
    if (root / "701_StillsRaw_full").is_dir():
        if split not in ("train", "val", "test"):
            raise SesamError(f"CamVid has the splits train, val and test, none called {split}. Correct params.yaml.")
        every = _match(root / "701_StillsRaw_full", "", (".png",), root / "LabeledApproved_full", "_L")
        return [pair for pair in every if _camvid_split(pair.id) == split]
    if (root / f"{split}annot").is_dir():
        return _match(root / split, "", (".png",), root / f"{split}annot", "")
    if (root / f"{split}_labels").is_dir():
        return _match(root / split, "", (".png",), root / f"{split}_labels", "_L")
    return folder(root, split)


def _camvid_split(name: str) -> str:
    sequence, _, frame = name.rpartition("_")
    number = int(re.sub(r"\D", "", frame) or 0)
    if sequence == "0016E5" and 7959 <= number <= 8159 and number % 2:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550) else "train"


# of each kind its pairs in a split below dataset.root, and its usual splits
LAYOUTS: dict[str, tuple[Callable[[Path, str], list[Pair]], Callable[[Path], dict[str, str]]]] = {
    "folder": (folder, lambda root: {"train": "train", "val": "val"}),
    "cityscapes": (cityscapes, lambda root: {"train": "train", "val": "val"}),
    "ade20k": (ade20k, lambda root: {"train": "training", "val": "validation"}),
    "voc": (voc, _usual_of_voc),
    "camvid": (camvid, lambda root: {"train": "train", "val": "val"}),
}


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, also behind links, in order; none whose name begins with a dot."""
    for inside, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(inside, name) for name in sorted(names) if not name.startswith("."))


def images_below(folder: Path, but: Sequence[Path] = ()) -> dict[str, Path]:
    """The images below a folder, in order, by their path in it without the ending; none that lies below `but`.

    SesamError if there is none, or two have one name.
    """
    if not folder.is_dir():
        raise SesamError(f"{folder} is no folder.")
    left_out, found = {path.resolve() for path in but}, {}
    for path in files_below(folder):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not left_out.isdisjoint(path.resolve().parents):
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise SesamError(f"{folder}: two images are called {name}. Rename one.")
        found[name] = path
    if not found:
        raise SesamError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    return found


def _match(
    images: Path, image_end: str, suffixes: tuple[str, ...], labels: Path | None, label_end: str, nested: bool = False
) -> list[Pair]:
    """Images and labels of one id, also where one of the two is missing. nested: an id has the folders in it.

    Several images of one id make several pairs.
    """
    photographs = _files(images, image_end, suffixes, nested)
    if labels is None:
        return [Pair(k, path, None) for k, path in photographs]
    masks: dict[str, Path] = {}
    for k, path in _files(labels, label_end, (".png",), nested):
        if k in masks:
            raise SesamError(f"{path} and {masks[k]} both label {k}. Remove one.")
        masks[k] = path

    def expected_path(path: Path, old: Path, new: Path, k: str, end: str) -> Path:
        """Where the missing half of a pair is to be expected, from where the other half is."""
        return new / (f"{k}{end}" if nested else path.relative_to(old).parent / f"{k}{end}")

    found = [
        Pair(k, path, masks.get(k) or expected_path(path, images, labels, k, f"{label_end}.png"))
        for k, path in photographs
    ]
    alone = masks.keys() - {k for k, _ in photographs}
    return found + [
        Pair(k, expected_path(masks[k], labels, images, k, f"{image_end}{suffixes[0]}"), masks[k]) for k in alone
    ]


def _files(folder: Path, end: str, suffixes: tuple[str, ...], nested: bool) -> list[tuple[str, Path]]:
    """Id and path of the files below a folder. SesamError if there is none."""
    if not folder.is_dir():
        raise SesamError(
            f"{folder} is missing. Is dataset.root the folder that the data set's maker names, and dataset.format right?"
        )
    found = [
        ((path.relative_to(folder).with_suffix("").as_posix() if nested else path.stem).removesuffix(end), path)
        for path in files_below(folder)
        if path.suffix.lower() in suffixes and path.stem.endswith(end)
    ]
    if not found:
        raise SesamError(f"{folder} holds no file *{end}{' or '.join(suffixes)}. Put them there.")
    return found


def _inner(root: Path, *names: str) -> Path:
    """The data set's own folder, where dataset.root is the one that it was unpacked into."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _listed(path: Path) -> list[str]:
    """The ids of a split file, one a line, or paths of images; SesamError if it is missing or empty."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise SesamError(f"{path} cannot be read; it lists the images of a split, one id a line.") from None
    ids = [Path(line.split()[0]).stem for line in lines if line.strip()]
    if not ids:
        raise SesamError(f"{path} is empty; it lists the images of a split, one id a line.")
    return ids


def _by_id(pair: Pair) -> tuple[str, Path]:
    return pair.id, pair.image
