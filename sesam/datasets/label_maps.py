"""What the values of a data set's label files mean: class ids, 255 = no class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np

from sesam.artifacts.label_png import open_image
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX

# each train id's label id in Cityscapes (Cordts et al. 2016); label ids 0 to 33 without one are no class
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# the 32 colors of CamVid (Brostow et al. 2009) in its usual 11 classes (Badrinarayanan et al. 2017)
CAMVID = {
    "sky": [(128, 128, 128)],
    "building": [(128, 0, 0), (64, 192, 0), (64, 0, 64), (192, 0, 128), (0, 128, 64)],  # wall, tunnel, archway, bridge
    "pole": [(192, 192, 128), (0, 0, 64)],  # traffic cone
    "road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],  # lane markings
    "sidewalk": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],  # parking block, road shoulder
    "tree": [(128, 128, 0), (192, 192, 0)],  # other vegetation
    "sign": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],  # text, traffic light
    "fence": [(64, 64, 128)],
    "car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],  # and larger, other moving
    "pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],  # child, pram, animal
    "bicyclist": [(0, 128, 192), (192, 0, 192)],  # motorcycle
}
CAMVID_VOID = (0, 0, 0)

IGNORED = -1


@dataclass(frozen=True)
class LabelMap:
    """The class id of each label value, (256,) int16, and of each color, as 0xRRGGBB, where labels may be colored.

    255: no class. MEANINGLESS: the maker has no such value.
    """

    table: np.ndarray
    colors: tuple[tuple[int, int], ...] = ()

    def class_ids(self, label: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Class ids (H, W) uint8 of a label file, and the values in it that mean nothing.

        label: (H, W) uint8 values, or (H, W, 3) uint8 colors.
        """
        if label.ndim == 3:
            return self._of_colors(label)
        ids = self.table[label]
        strange = np.flatnonzero(np.bincount(label[ids == IGNORED], minlength=1))
        return ids.astype(np.uint8), [str(value) for value in strange]

    def values(self) -> str:
        """The values of gray and palette files, in words, and how many colors mean something besides."""

        def ranges(values: np.ndarray) -> str:
            runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
            return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

        is_class = (self.table != IGNORED) & (self.table != IGNORE_INDEX)
        said = f"{ranges(np.flatnonzero(is_class))} for classes"
        if (none := np.flatnonzero(self.table == IGNORE_INDEX)).size:
            said += f", {ranges(none)} for no class"
        return said + (f", and {len(self.colors)} colors" if self.colors else "")

    def _of_colors(self, label: np.ndarray) -> tuple[np.ndarray, list[str]]:
        key = label.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        known, ids = (np.array(part) for part in zip(*self.colors, strict=True))
        at = np.searchsorted(known, key).clip(max=len(known) - 1)
        strange = np.unique(key[known[at] != key])
        return ids[at].astype(np.uint8), [f"#{value:06x}" for value in strange]


def label_map_for(kind: str, classes: int, ignore: list[int]) -> LabelMap:
    """What the label values of a kind of data set mean. ignore: for a folder of one's own, values that are no class."""
    table = np.full(256, IGNORED, np.int16)
    colors: tuple[tuple[int, int], ...] = ()
    if kind not in ("cityscapes", "ade20k"):  # these two have no 255, so that train ids are told
        table[IGNORE_INDEX] = IGNORE_INDEX
    if kind == "cityscapes":
        table[:34] = IGNORE_INDEX
        table[list(CITYSCAPES)] = np.arange(len(CITYSCAPES))
    elif kind == "ade20k":  # 0 is "other"
        table[0] = IGNORE_INDEX
        table[1 : classes + 1] = np.arange(classes)
    else:
        table[:classes] = np.arange(classes)
        table[[11] if kind == "camvid" else ignore] = IGNORE_INDEX
    if kind == "camvid":
        found = {_key(color): k for k, several in enumerate(CAMVID.values()) for color in several}
        colors = tuple(sorted((found | {_key(CAMVID_VOID): IGNORE_INDEX}).items()))
    return LabelMap(table, colors)


def read_values(path: Path, meaning: LabelMap) -> np.ndarray:
    """A label file: (H, W) uint8, or (H, W, 3) uint8 where labels may be colored; SesamError if it cannot be read.

    Of a data set with colored labels, a palette PNG with its colors alone is colored too. Of any other, an RGB file
    whose channels are equal holds values, as Scribbles4All's do.
    """
    with open_image(path) as image:
        if image.mode == "P" and meaning.colors:
            label = np.array(image.convert("RGB"))
            return np.array(image) if meaning.class_ids(label)[1] else label
        if image.mode in ("L", "P"):
            return np.array(image)
        if image.mode == "RGB":
            label = np.array(image)
            if meaning.colors:
                return label
            if (label == label[..., :1]).all():
                return label[..., 0]
        raise SesamError(f"{path} has mode {image.mode}; expected one 8-bit channel of class ids. Convert it.")


def class_bitmask(ids: np.ndarray) -> int:
    """Which classes occur in class ids (H, W) uint8: bit k is set for class k."""
    counts = np.bincount(ids.ravel(), minlength=256)[:IGNORE_INDEX]
    return sum(1 << int(k) for k in np.flatnonzero(counts))


def absent_classes(occurring: Iterable[int], classes: Sequence[str]) -> list[str]:
    """The classes that occur in none of several label maps."""
    anywhere = reduce(or_, occurring, 0)
    return [name for k, name in enumerate(classes) if not anywhere >> k & 1]


def class_names_and_palette(kind: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Class names and palette of a published data set: mmsegmentation's, and CamVid's own."""
    if kind == "camvid":
        return list(CAMVID), [several[0] for several in CAMVID.values()]
    from mmseg.datasets import ADE20KDataset, CityscapesDataset, PascalVOCDataset  # slow, and not for the workers

    known = {"cityscapes": CityscapesDataset, "ade20k": ADE20KDataset, "voc": PascalVOCDataset}[kind].METAINFO
    return list(known["classes"]), [tuple(color) for color in known["palette"]]


def _key(color: tuple[int, int, int]) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue
