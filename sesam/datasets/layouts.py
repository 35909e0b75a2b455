"""The layouts of data sets: images, fine labels and splits. Paths may not exist: `prepare` reports what is missing."""

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from sesam.errors import SesamError
from sesam.regular_files import read_regular

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
HIDDEN = (".", "@eaDir", "__MACOSX")  # beginnings of names: what systems put beside photographs
MAX_FOLDERS_SHOWN = 5
TILES_INDEX = "tiles.json"  # in a folder that `sesam tile split` wrote
VOC_FOLDERS = ("VOCdevkit/VOC2012", "VOC2012")  # what the archive unpacks to


class ImagePair(NamedTuple):
    """An image and its fine label, None if it has none. `id` names it in every artifact."""

    id: str
    image: Path
    label: Path | None


def find_pairs(dataset_format: str, root: Path, splits: Sequence[str] | None, purpose: str) -> list[ImagePair]:
    """The pairs of the splits, or of the usual one for `purpose` (train or val), by id; SesamError if it is empty."""
    if not root.is_dir():
        raise SesamError(f"dataset.root: {root} is not a folder. Create or link it, or correct the path.")
    chosen = [_usual_split(dataset_format, root, purpose)] if splits is None else [*splits]
    if splits is None and purpose == "train" and dataset_format == "folder" and (root / "images/unlabeled").is_dir():
        chosen += ["unlabeled"]
    by_split = {split: LAYOUTS[dataset_format](root, split) for split in chosen}
    unique = {pair for pairs in by_split.values() for pair in pairs}
    if len({pair.id for pair in unique}) < len(unique) and len(by_split) > 1:  # folds that all count from 0
        unique = {pair._replace(id=f"{split}/{pair.id}") for split, pairs in by_split.items() for pair in pairs}
    return sorted(unique, key=lambda pair: (pair.id, pair.image))


def _usual_split(dataset_format: str, root: Path, purpose: str) -> str:
    if dataset_format == "ade20k":
        return {"train": "training", "val": "validation"}[purpose]
    if dataset_format == "voc" and purpose == "train":
        root = _inner(root, *VOC_FOLDERS)
        if (root / "SegmentationClassAug").is_dir() or (root / "ImageSets/Segmentation/trainaug.txt").exists():
            return "trainaug"
    return purpose


def folder(root: Path, split: str) -> list[ImagePair]:
    """images/SPLIT/ID.{png,jpg,tif,webp,bmp}, and labels/SPLIT/ID.png if there are fine labels; ID may have folders."""
    labels = root / "labels" / split
    return _match(root / "images" / split, labels if labels.is_dir() else None, nested=True)


def cityscapes(root: Path, split: str) -> list[ImagePair]:
    """Cordts et al. 2016: leftImg8bit/SPLIT/CITY/ID_leftImg8bit.png, gtFine/SPLIT/CITY/ID_gtFine_labelIds.png."""
    labels = None if split == "train_extra" else root / "gtFine" / split  # train_extra has coarse labels only
    return _match(root / "leftImg8bit" / split, labels, "_leftImg8bit", "_gtFine_labelIds")


def ade20k(root: Path, split: str) -> list[ImagePair]:
    """Zhou et al. 2017, the scene parsing challenge: images/SPLIT/ID.jpg and annotations/SPLIT/ID.png."""
    root = _inner(root, "ADEChallengeData2016")
    return _match(root / "images" / split, root / "annotations" / split, suffix=".jpg")


def voc(root: Path, split: str) -> list[ImagePair]:
    """Everingham et al. 2012: ImageSets/Segmentation/SPLIT.txt, JPEGImages/ID.jpg, SegmentationClass/ID.png.

    trainaug adds what Hariharan et al. 2011 labeled, SegmentationClassAug/ID.png, where VOC itself has no label.
    Without trainaug.txt it is train.txt with aug.txt, or with all that is labeled there and not in val.txt.
    """
    root = _inner(root, *VOC_FOLDERS)
    lists, fine, augmented = root / "ImageSets/Segmentation", root / "SegmentationClass", root / "SegmentationClassAug"
    if split != "trainaug" or (lists / "trainaug.txt").exists():
        ids = _read_ids(lists / f"{split}.txt")
    elif augmented.is_dir():
        more = [path.stem for path in list_files(augmented) if path.suffix == ".png"]
        ids = _read_ids(lists / "train.txt") + (_read_ids(lists / "aug.txt") if (lists / "aug.txt").exists() else more)
    else:
        raise SesamError(f"{root} has neither SegmentationClassAug nor {lists / 'trainaug.txt'} for split trainaug.")
    labels: dict[str, Path | None] = {k: fine / f"{k}.png" for k in ids}
    if split == "trainaug":
        unlabeled = labels.keys() - {path.stem for path in list_files(fine)}
        # a list may have come without the labels
        labels |= {k: augmented / f"{k}.png" if augmented.is_dir() else None for k in unlabeled}
        ids = sorted(labels.keys() - _read_ids(lists / "val.txt"))
    return [ImagePair(k, root / "JPEGImages" / f"{k}.jpg", labels[k]) for k in ids]


def camvid(root: Path, split: str) -> list[ImagePair]:
    """Brostow et al. 2009, split as usual (Sturgess et al. 2009), in the layouts of others, or as `folder`.

    701_StillsRaw_full/ID.png, LabeledApproved_full/ID_L.png; SPLIT/ID.png, SPLITannot/ID.png or SPLIT_labels/ID_L.png.
    """
    if (root / "701_StillsRaw_full").is_dir():
        if split not in ("train", "val", "test"):
            raise SesamError(f"CamVid has the splits train, val and test, not {split}. Correct params.yaml.")
        pairs = _match(root / "701_StillsRaw_full", root / "LabeledApproved_full", label_end="_L")
        return [pair for pair in pairs if _camvid_split(pair.id) == split]
    for labels, end in ((root / f"{split}annot", ""), (root / f"{split}_labels", "_L")):
        if labels.is_dir():
            return _match(root / split, labels, label_end=end)
    return folder(root, split)


def _camvid_split(image_id: str) -> str:  # 367 train, 101 val, 233 test
    sequence, _, frame = image_id.rpartition("_")
    number = int(re.sub(r"\D", "", frame) or 0)
    if sequence == "0016E5" and 7959 <= number <= 8159 and number % 2:
        return "val"
    return "test" if sequence == "Seq05VD" or (sequence == "0001TP" and number >= 8550) else "train"


# per format, its pairs in a split below dataset.root
LAYOUTS = {layout.__name__: layout for layout in (folder, cityscapes, ade20k, voc, camvid)}


def list_files(folder: Path) -> list[Path]:
    """All files below a folder, sorted, also behind links; none that is hidden, or in a hidden folder.

    Each folder is walked once, under its own path if it has one below `folder`, so that a link cycle repeats nothing.
    """
    files: list[Path] = []
    visited: set[str] = set()
    pending = [folder]
    for start in pending:  # links follow, after all that is below without them
        for parent, folders, names in os.walk(start):
            is_new = (real := os.path.realpath(parent)) not in visited
            visited.add(real)
            folders[:] = [name for name in folders if is_new and not name.startswith(HIDDEN)]
            links = sorted(path for name in folders if (path := Path(parent, name)).is_symlink())
            pending += [path for path in links if not _holds_this_folder(path)]
            files += [Path(parent, name) for name in names if is_new and not name.startswith(HIDDEN)]
    return sorted(files)


def _holds_this_folder(link: Path) -> bool:
    """False; SesamError for a link to the current folder or one above it, as to /: all of the disk would be walked."""
    if (real := link.resolve()) in (here := Path.cwd(), *here.parents):
        raise SesamError(f"{link} is a link to {real}, which holds this folder. Link the folder with the files alone.")
    return False


def list_images(folder: Path, exclude: Sequence[Path] = ()) -> dict[str, Path]:
    """The images below a folder by path in it without suffix, not those below `exclude`.

    SesamError if there is none, or if two have one path.
    """
    if not folder.is_dir():
        raise SesamError(f"{folder} is not a folder.")
    excluded, images = {path.resolve() for path in exclude}, {}
    for path in list_files(folder):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not excluded.isdisjoint(path.resolve().parents):
            continue
        image_id = path.relative_to(folder).with_suffix("").as_posix()
        if image_id in images:
            raise SesamError(f"{folder}: two images are called {image_id}. Rename one.")
        images[image_id] = path
    if not images:
        raise SesamError(f"{folder} has no image ({', '.join(IMAGE_SUFFIXES)}).")
    return images


def describe_unread_files(
    folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, exclude: Path | None = None
) -> str | None:
    """The number of files below a folder, not below `exclude`, with other endings, by ending; None if there is none."""
    files = [path for path in list_files(folder) if exclude is None or exclude not in path.parents]
    found = Counter(path.suffix or "no ending" for path in files if path.suffix.lower() not in suffixes)
    each = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))
    return f"{each} in {folder} that are not read; expected {', '.join(suffixes)}" if found else None


def _match(
    images: Path,
    labels: Path | None,
    image_end: str = "",
    label_end: str = "",
    suffix: str = ".png",
    nested: bool = False,
) -> list[ImagePair]:
    """Images and labels of one id, or one of them; two images make two pairs. nested: as in `folder`."""
    suffixes = IMAGE_SUFFIXES if nested else (suffix,)
    image_files = _files(images, image_end, suffixes, nested)
    if labels is None:
        return [ImagePair(k, path, None) for k, path in image_files]
    label_files: dict[str, Path] = {}
    for k, path in _files(labels, label_end, (".png",), nested):
        if k in label_files:
            raise SesamError(f"{path} and {label_files[k]} both label {k}. Remove one.")
        label_files[k] = path
    if nested and (end := _common_end(label_files, {k for k, _ in image_files})):
        raise SesamError(
            f"{labels}: all names end in {end}, the images' names do not. Remove it from the labels' names."
        )
    pairs = []
    for k, path in image_files:
        name = path.relative_to(images).with_name(f"{Path(k).name}{label_end}.png")
        pairs.append(ImagePair(k, path, label_files.get(k, labels / name)))
    for k in label_files.keys() - {k for k, _ in image_files}:
        name = label_files[k].relative_to(labels).with_name(f"{Path(k).name}{image_end}{suffixes[0]}")
        pairs.append(ImagePair(k, images / name, label_files[k]))
    return pairs


def _common_end(labels: Collection[str], images: Collection[str]) -> str:
    """What all labels' ids have behind an image's, as _mask in 0_mask; "" if they have nothing in common."""
    if not labels or any(label in images for label in labels):
        return ""
    first = min(labels)
    ends = {first[len(image) :] for image in images if first.startswith(image)}
    common = [end for end in ends if all(k.endswith(end) and k.removesuffix(end) in images for k in labels)]
    return max(common, key=len, default="")


def _files(folder: Path, end: str, suffixes: tuple[str, ...], nested: bool) -> list[tuple[str, Path]]:
    """Id and path of the files below a folder. SesamError if there is none."""
    if not folder.is_dir():
        parent = next(path for path in folder.parents if path.is_dir())
        found = sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN))
        inside = ", ".join(found[:MAX_FOLDERS_SHOWN]) + ", …" * (len(found) > MAX_FOLDERS_SHOWN) or "no folder"
        raise SesamError(
            f"{folder} is missing; {parent} has {inside}. Check that dataset.root has the original layout of "
            "dataset.format; dataset.train_splits and .val_splits name other splits."
        )
    paths = [path for path in list_files(folder) if path.suffix.lower() in suffixes and path.stem.endswith(end)]
    if not paths:
        rest = describe_unread_files(folder, suffixes)
        hint = f" Or convert {rest}." if rest else ""
        raise SesamError(f"{folder} has no file *{end}{' or '.join(suffixes)}. Add them.{hint}")
    names = [path.relative_to(folder).with_suffix("").as_posix() if nested else path.stem for path in paths]
    names = [normalize("NFC", name) for name in names]  # a Mac stores names decomposed
    return [(name.removesuffix(end), path) for name, path in zip(names, paths, strict=True)]


def _inner(root: Path, *names: str) -> Path:
    """The data set's folder, if dataset.root is the one that it was unpacked into."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _read_ids(path: Path) -> list[str]:
    """The ids of a split file, one per line, or paths of images; SesamError if it is missing or empty."""
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    if ids := [Path(line.split()[0]).stem for line in lines if line.strip()]:
        return ids
    raise SesamError(f"{path} cannot be read or is empty; expected the image ids of a split, one per line.")
