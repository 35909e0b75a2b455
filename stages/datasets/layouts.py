"""Where each kind of data set keeps its images and fine labels, and in which splits.

Paths are told as the maker lays them out, whether the files are there or not: `prepare` says what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from stages.common.errors import SesamError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pair:
    """An image and its fine label; None where the maker gives no fine label. `id` names it in every artefact."""

    id: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Layout:
    """One kind of data set: its usual splits, and the pairs of a split below dataset.root, by id."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    pairs: Callable[[Path, str], list[Pair]]


def find_pairs(kind: str, root: Path, splits: Iterable[str] | None, purpose: str) -> list[Pair]:
    """The pairs of the splits, or of the usual ones for `purpose` (train or val), by id.

    SesamError if a folder or a list is missing or empty, or an id comes twice.
    """
    layout = LAYOUTS[kind]
    if not root.is_dir():
        raise SesamError(f"{root} (dataset.root) is no folder. Put the data set there, or set where it lies.")
    found: dict[str, Pair] = {}
    for split in splits or getattr(layout, purpose):
        for pair in layout.pairs(root, split):
            if pair.id in found:
                raise SesamError(
                    f"{pair.image} and {found[pair.id].image} have one name, {pair.id}. "
                    "Rename one; names decide which label belongs to an image."
                )
            found[pair.id] = pair
    return [found[k] for k in sorted(found)]


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

    trainaug: with the labels of Hariharan et al. 2011 in SegmentationClassAug/ID.png, if they are there, for what
    VOC itself does not label; its list, where none came with them, is train.txt with aug.txt, or with all that is
    labelled there and not in val.txt.
    """
    root = _inner(root, "VOCdevkit/VOC2012", "VOC2012")
    lists, fine, more = root / "ImageSets/Segmentation", root / "SegmentationClass", root / "SegmentationClassAug"
    if split == "trainaug":
        if not more.is_dir():
            ids = _listed(lists / "train.txt")
        elif (lists / "trainaug.txt").exists():
            ids = _listed(lists / "trainaug.txt")
        elif (lists / "aug.txt").exists():
            ids = _listed(lists / "train.txt") + _listed(lists / "aug.txt")
        else:
            ids = _listed(lists / "train.txt") + [path.stem for path in more.glob("*.png")]
        ids = sorted(set(ids) - set(_listed(lists / "val.txt")))
    else:
        ids = _listed(lists / f"{split}.txt")
    labelled = {path.stem for path in fine.glob("*.png")} if more.is_dir() else set(ids)
    return [Pair(k, root / "JPEGImages" / f"{k}.jpg", (fine if k in labelled else more) / f"{k}.png") for k in ids]


def camvid(root: Path, split: str) -> list[Pair]:
    """CamVid (Brostow et al. 2009) as it is published, or in one of the forms that others gave it.

    701_StillsRaw_full/ID.png and LabeledApproved_full/ID_L.png, split as usual (Sturgess et al. 2009): 367 train,
    101 val, 233 test; SPLIT/ID.png with SPLITannot/ID.png or SPLIT_labels/ID_L.png; or images/SPLIT/ID.png with
    labels/SPLIT/ID.png.
    """
    if (root / "701_StillsRaw_full").is_dir():
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


LAYOUTS = {
    "folder": Layout(("train",), ("val",), folder),
    "cityscapes": Layout(("train",), ("val",), cityscapes),
    "ade20k": Layout(("training",), ("validation",), ade20k),
    "voc": Layout(("trainaug",), ("val",), voc),
    "camvid": Layout(("train",), ("val",), camvid),
}


def _match(
    images: Path, image_end: str, suffixes: tuple[str, ...], labels: Path | None, label_end: str, nested: bool = False
) -> list[Pair]:
    """Images and labels of one id, also where one of the two is missing. nested: an id has the folders in it."""
    photographs = _files(images, image_end, suffixes, nested)
    if labels is None:
        return [Pair(k, images / path, None) for k, path in photographs.items()]
    masks = _files(labels, label_end, (".png",), nested)

    def pair(k: str) -> Pair:
        image = photographs.get(k) or _beside(masks[k], k, f"{image_end}{suffixes[0]}", nested)
        label = masks.get(k) or _beside(photographs[k], k, f"{label_end}.png", nested)
        return Pair(k, images / image, labels / label)

    return [pair(k) for k in sorted(photographs.keys() | masks.keys())]


def _files(folder: Path, end: str, suffixes: tuple[str, ...], nested: bool) -> dict[str, Path]:
    """Files below a folder by id, as paths inside it. SesamError if there is none."""
    if not folder.is_dir():
        raise SesamError(
            f"{folder} is missing. Is dataset.root the folder that the data set's maker names, and dataset.kind right?"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{end}.*")):
        if path.suffix.lower() in suffixes and path.stem.endswith(end):
            inside = path.relative_to(folder)
            name = inside.with_suffix("").as_posix() if nested else inside.stem
            k = name.removesuffix(end)
            if k in found:
                raise SesamError(f"{path} and {folder / found[k]} have one name, {k}. Remove or rename one.")
            found[k] = inside
    if not found:
        raise SesamError(f"{folder} holds no file *{end}{' or '.join(suffixes)}. Put them there.")
    return found


def _beside(other: Path, k: str, end: str, nested: bool) -> Path:
    """Where the missing half of a pair is to be expected, from where the other half is."""
    return Path(f"{k}{end}") if nested else other.parent / f"{k}{end}"


def _inner(root: Path, *names: str) -> Path:
    """The data set's own folder, where dataset.root is the one that it was unpacked into."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def _listed(path: Path) -> list[str]:
    """The ids of a split file, one a line, or paths of images; SesamError if it is missing or empty."""
    try:
        ids = [Path(line.split()[0]).stem for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise SesamError(f"{path} cannot be read; it lists the images of a split, one id a line.") from None
    if not ids:
        raise SesamError(f"{path} is empty; it lists the images of a split, one id a line.")
    return ids
