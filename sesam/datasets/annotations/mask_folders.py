"""Folders of masks: CVAT's "Segmentation mask 1.1", and a folder of binary masks per class."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import read_bytes
from sesam.artifacts.image_io import LABEL_FORMATS, open_image
from sesam.datasets.annotation_shapes import Drawing, Shape
from sesam.datasets.annotations.common import Annotation, Drawn, LabelSpec, file_kind
from sesam.datasets.data_issues import DataIssue, IssueKind
from sesam.datasets.label_maps import color_keys
from sesam.datasets.layouts import HIDDEN, list_files
from sesam.errors import SesamError

BACKGROUND = "background"  # CVAT's name of what nobody labeled


def read_mask_folder(source: Path, classes: Sequence[str]) -> list[tuple[str, Annotation]] | None:
    """The annotations of such a folder, each with its image's name; None if it is another one."""
    folders = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(HIDDEN)]
    if (source / "labelmap.txt").is_file() and (source / "SegmentationClass").is_dir():
        return _read_cvat(source / "SegmentationClass", source / "labelmap.txt")
    files = {folder.name: [path for path in list_files(folder) if path.suffix.lower() == ".png"] for folder in folders}
    rest = [
        path for path in list_files(source) if path.parent == source and file_kind(path) in (".png", ".json", ".xml")
    ]
    if files and not rest and set(files) <= set(classes) and all(files.values()):
        return _read_binary(source, files)
    return None


def _read_cvat(folder: Path, labelmap: Path) -> list[tuple[str, Annotation]]:
    """SegmentationClass/ID.png, RGB; labelmap.txt has NAME:R,G,B:parts:actions in each line."""
    names: dict[int, str] = {}
    for line in read_bytes(labelmap).decode(errors="replace").splitlines():
        name, *fields = line.split(":")
        if line.strip() and not line.startswith("#"):
            try:
                red, green, blue = (int(value) for value in fields[0].split(","))
                other = names.setdefault(int.from_bytes(bytes((red, green, blue))), name)
            except (IndexError, ValueError):
                raise SesamError(f"{labelmap} has the line {line[:80]!r}; expected NAME:R,G,B. Export again.") from None
            if other != name:
                raise SesamError(f"{labelmap}: {other} and {name} have one color. Give them two, and export again.")
    pngs = [path for path in list_files(folder) if path.suffix.lower() == ".png"]
    return [(path.relative_to(folder).as_posix(), ColoredMask(path, names)) for path in pngs]


@dataclass(frozen=True)
class ColoredMask(Annotation):
    """An RGB PNG. names: of its colors, 0xRRGGBB."""

    names: dict[int, str]

    def draw(self, spec: LabelSpec) -> Drawn:
        try:
            keys = _keys(self.path)
        except SesamError as problem:
            raise DataIssue(IssueKind.UNREADABLE, str(problem)) from None
        named = [(color, self.names.get(color, f"#{color:06x}")) for color in np.unique(keys).tolist()]
        shapes = [Shape(k, "mask", pixels=partial(_equal, keys, color)) for color, k in named if k != BACKGROUND]
        return Drawing(self.path, None, tuple(shapes)).draw(spec)


def _equal(keys: np.ndarray, color: int, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(keys == color)


def _keys(path: Path) -> np.ndarray:
    with open_image(path, formats=LABEL_FORMATS) as image:
        return color_keys(np.array(image.convert("RGB")))


def _read_binary(source: Path, files: dict[str, list[Path]]) -> list[tuple[str, Annotation]]:
    """CLASS/ID.png, of two values at most, 0 where the class is not."""
    by_image: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, paths in files.items():
        for path in paths:
            by_image[path.relative_to(source / name).as_posix()][name] = path
    return [(image, BinaryMasks(next(iter(masks.values())), masks)) for image, masks in by_image.items()]


@dataclass(frozen=True)
class BinaryMasks(Annotation):
    """The masks of an image, by class. What several hold is left out, for none is on top."""

    masks: dict[str, Path]

    def draw(self, spec: LabelSpec) -> Drawn:
        try:
            masks = {name: _binary(path) for name, path in self.masks.items()}
        except (SesamError, ValueError) as problem:
            raise DataIssue(IssueKind.UNREADABLE, f"{self.path} has {problem}") from None
        for mask in masks.values():
            self.check_size(mask.shape, spec)
        several = np.sum(list(masks.values()), axis=0) > 1
        shapes = [Shape(k, "mask", pixels=partial(_outside, mask, several)) for k, mask in masks.items()]
        skipped = {"pixels in masks of several classes": int(several.sum())}
        return Drawing(self.path, None, tuple(shapes), skipped=skipped).draw(spec)


def _outside(mask: np.ndarray, other: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return mask & ~other


def _binary(path: Path) -> np.ndarray:
    """(H, W) bool; ValueError if a file has other values than 0 and one more, for then it is not a mask."""
    with open_image(path, formats=LABEL_FORMATS) as image:
        if image.has_transparency_data and image.convert("RGBA").getextrema()[-1] != (255, 255):
            raise ValueError(f"{path.parent.name}/{path.name} with transparent pixels. Flatten it onto black")
        values = np.array(image if image.mode == "P" else image.convert("L"))  # of a palette the index is the value
    found = np.unique(values)
    if len(found) > 2:
        raise ValueError(f"{path.parent.name}/{path.name} with more than two values, which is not a mask of one class")
    if len(found) == 2 and found[0]:
        text = f"with the values {found[0]} and {found[1]}; expected 0 where the class is not"
        raise ValueError(f"{path.parent.name}/{path.name} {text}")
    return np.asarray(values > 0)
