"""From the values of a data set's label files to class ids, 255 = no class."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageColor

from sesam.artifacts.image_io import open_image
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX
from sesam.params import DatasetParams

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
UNKNOWN = -1  # the data set has no such value


class LabelMap(NamedTuple):
    """What label values mean: their class ids, 255 = no class, or UNKNOWN."""

    table: np.ndarray  # (256,) int16
    colors: tuple[tuple[int, int], ...] = ()  # if labels may be colored: each 0xRRGGBB with its class id, sorted

    def class_ids(self, label: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Class ids (H, W) uint8 of values (H, W) or colors (H, W, 3), both uint8, and the values that are unknown."""
        if label.ndim == 2:
            ids = self.table[label]
            return ids.astype(np.uint8), [str(value) for value in np.unique(label[ids == UNKNOWN])]
        keys = label.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        known, of_known = (np.array(column) for column in zip(*self.colors, strict=True))
        index = np.searchsorted(known, keys).clip(max=len(known) - 1)
        unknown = np.unique(keys[known[index] != keys])
        return of_known[index].astype(np.uint8), [f"#{value:06x}" for value in unknown]

    def describe(self) -> str:
        """The known values of gray and palette files, and the number of colors."""

        def ranges(values: np.ndarray) -> str:
            runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
            return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

        ignored = np.flatnonzero(self.table == IGNORE_INDEX)
        classes = np.setdiff1d(np.flatnonzero(self.table != UNKNOWN), ignored)
        text = f"{ranges(classes)} for classes" + (f", {ranges(ignored)} for no class" if ignored.size else "")
        return text + (f", and {len(self.colors)} colors" if self.colors else "")


def label_map_for(dataset_format: str, classes: int, ignore_values: Sequence[int]) -> LabelMap:
    """The label map of a data set. ignore_values: of a folder, values without a class."""
    table, colors = np.full(256, UNKNOWN, np.int16), {}
    if dataset_format == "cityscapes":  # without 255, as ADE20K, so that train ids are reported
        table[:34] = IGNORE_INDEX
        table[list(CITYSCAPES)] = np.arange(len(CITYSCAPES))
    elif dataset_format == "ade20k":  # 0 is "other"
        table[: classes + 1] = [IGNORE_INDEX, *range(classes)]
    else:
        table[:classes] = np.arange(classes)
        table[[IGNORE_INDEX, *([11] if dataset_format == "camvid" else ignore_values)]] = IGNORE_INDEX
    if dataset_format == "camvid":
        colors = {int.from_bytes(bytes(color)): k for k, of_class in enumerate(CAMVID.values()) for color in of_class}
        colors[0] = IGNORE_INDEX  # void
    return LabelMap(table, tuple(sorted(colors.items())))


def read_values(path: Path, label_map: LabelMap) -> np.ndarray:
    """A label file: (H, W) uint8, or (H, W, 3) uint8 where labels may be colored; SesamError if it cannot be read.

    Of a data set with colored labels, a palette PNG with its colors alone is colored too. Of any other, an RGB file
    whose channels are equal holds values, as Scribbles4All's do.
    """
    with open_image(path) as image:
        label = np.array(image)
        if image.mode == "P" and label_map.colors:
            colors = np.array(image.convert("RGB"))
            return label if label_map.class_ids(colors)[1] else colors
        if image.mode in ("L", "P") or (image.mode == "RGB" and label_map.colors):
            return label
        if image.mode == "RGB" and (label == label[..., :1]).all():
            return label[..., 0]
        raise SesamError(f"{path} has mode {image.mode}; expected one 8-bit channel of class ids. Convert it.")


def class_names_and_palette(dataset: DatasetParams) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Class names and RGB colors: mmsegmentation's, CamVid's, or those that params.yaml gives a folder."""
    if dataset.classes is not None:
        palette = [ImageColor.getrgb(color)[:3] for color in dataset.palette or []]
        return dataset.classes, palette or color_wheel(len(dataset.classes))
    if dataset.format == "camvid":
        return list(CAMVID), [colors[0] for colors in CAMVID.values()]
    from mmseg.datasets import ADE20KDataset, CityscapesDataset, PascalVOCDataset  # slow, and not for the workers

    known = {"cityscapes": CityscapesDataset, "ade20k": ADE20KDataset, "voc": PascalVOCDataset}[dataset.format].METAINFO
    return list(known["classes"]), [tuple(color) for color in known["palette"]]


def color_wheel(classes: int) -> list[tuple[int, int, int]]:
    """Distinct RGB colors for data sets without a palette."""
    turns = [colorsys.hsv_to_rgb(k / classes, 0.85 if k % 2 else 0.55, 0.95 if k % 3 else 0.7) for k in range(classes)]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in turns]
