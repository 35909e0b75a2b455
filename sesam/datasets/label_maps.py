"""From the values of a data set's label files to class ids, 255 = no class."""

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageColor

from sesam.artifacts.image_io import LABEL_FORMATS, Palette, full_palette, open_image
from sesam.artifacts.manifest import Manifest
from sesam.datasets.data_issues import Issue, IssueKind, draft_map, format_map
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX, count_values
from sesam.params import DatasetParams, is_value_or_color

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
MAX_UNKNOWN = 20  # values or colors of a file that are listed; a photograph has thousands


def color_keys(rgb: np.ndarray) -> np.ndarray:
    """0xRRGGBB (H, W) uint32 of colors (H, W, 3) uint8."""
    return np.asarray(rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))


class LabelMap(NamedTuple):
    """What label values mean: their class ids, 255 = no class, or UNKNOWN."""

    table: np.ndarray  # (256,) int16
    colors: tuple[tuple[int, int], ...] = ()  # if labels may be colored: each 0xRRGGBB with its class id, sorted
    is_colored: bool = False  # whether palette PNGs are too
    names: Mapping[str, int] = {}  # annotation tools' names: class ids, or 255
    of_map: Mapping[int, int] = {}  # the colors of dataset.map

    def class_ids(self, label: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Class ids (H, W) uint8 of values (H, W) or colors (H, W, 3), both uint8, and the values that are unknown."""
        if label.ndim == 2:
            unknown = [str(value) for value in np.flatnonzero(count_values(label)) if self.table[value] == UNKNOWN]
            return cv2.LUT(label, self.table.astype(np.uint8)), unknown
        keys = color_keys(label)
        known, of_known = (np.array(column) for column in zip(*self.colors, strict=True))
        index = np.searchsorted(known, keys).clip(max=len(known) - 1)
        others = [f"#{value:06x}" for value in np.unique(keys[known[index] != keys])]
        more = [f"and {len(others) - MAX_UNKNOWN} more"] if len(others) > MAX_UNKNOWN else []
        return of_known[index].astype(np.uint8), others[:MAX_UNKNOWN] + more

    def are_colors(self, gray: np.ndarray) -> bool:
        """Whether gray values (H, W) of an RGB file are all known as colors; black alone only if a class has it."""
        known = dict(self.colors)
        found = [known.get(int(value) * 0x010101, UNKNOWN) for value in np.unique(gray)]
        return UNKNOWN not in found and (bool(gray.any()) or found != [IGNORE_INDEX])

    def values(self, classes: Sequence[str]) -> dict[str, str]:
        """The class of each value that has one."""
        return {str(value): classes[k] for value, k in enumerate(self.table.tolist()) if 0 <= k < IGNORE_INDEX}

    def describe(self) -> str:
        """The known values of gray and palette files, and the number of colors."""

        def ranges(values: np.ndarray) -> str:
            runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
            return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)

        ignored = np.flatnonzero(self.table == IGNORE_INDEX)
        classes = np.setdiff1d(np.flatnonzero(self.table != UNKNOWN), ignored)
        text = f"{ranges(classes)} for classes" + (f", {ranges(ignored)} for no class" if ignored.size else "")
        return text + (f", and {len(self.colors)} colors" if self.colors else "")


class Colors(NamedTuple):
    """A palette PNG's colors, 0xRRGGBB by value, and the values that occur in it."""

    palette: tuple[int, ...] = ()
    values: tuple[int, ...] = ()


NO_COLORS = Colors()


def label_map_for(manifest: Manifest) -> LabelMap:
    """The label map of a data set."""
    table, colors, num_classes = np.full(256, UNKNOWN, np.int16), dict[int, int](), len(manifest.classes)
    ids = {name: k for k, name in enumerate(manifest.classes)}
    mapped = {key: IGNORE_INDEX if name is None else ids[name] for key, name in manifest.map.items()}
    values = {int(key): k for key, k in mapped.items() if key.isdecimal()}
    if manifest.format == "cityscapes":  # without 255, as ADE20K, so that train ids are reported
        table[:34] = IGNORE_INDEX
        table[list(CITYSCAPES)] = np.arange(len(CITYSCAPES))
    elif manifest.format == "ade20k":  # 0 is "other"
        table[: num_classes + 1] = [IGNORE_INDEX, *range(num_classes)]
    elif values:  # then the map names all of them
        table[[IGNORE_INDEX, *manifest.ignore_values]] = IGNORE_INDEX
        table[list(values)] = list(values.values())
    else:
        table[:num_classes] = np.arange(num_classes)
        table[[IGNORE_INDEX, *([11] if manifest.format == "camvid" else manifest.ignore_values)]] = IGNORE_INDEX
    if manifest.format == "camvid":
        colors = {int.from_bytes(bytes(color)): k for k, of_class in enumerate(CAMVID.values()) for color in of_class}
        colors[0] = IGNORE_INDEX  # void
    of_palette = {int.from_bytes(bytes(color)): k for k, color in enumerate(manifest.palette)}
    if manifest.format == "folder" and len(of_palette) == num_classes:
        colors = {0: IGNORE_INDEX} | of_palette  # black is unlabeled, as in the label PNGs that are written here
    of_map = {int(key[1:], 16): k for key, k in mapped.items() if key.startswith("#") and is_value_or_color(key)}
    names = {key: k for key, k in mapped.items() if not is_value_or_color(key)}
    coded = {key: k for key, k in mapped.items() if is_value_or_color(key)}  # tools' names may be 1 or #ff0000 too
    known = tuple(sorted((colors | of_map).items()))
    return LabelMap(table, known, manifest.format == "camvid", coded | ids | names, of_map)


def describe_unknown(
    issues: Sequence[Issue], label_map: LabelMap, manifest: Manifest, may_map_values: bool = True
) -> list[str]:
    """Notes to values and names of no class: the known values, and a draft of dataset.map."""
    has_values = any(issue.kind == IssueKind.VALUES for issue in issues)
    known = label_map.values(manifest.classes) if may_map_values and manifest.format == "folder" else None
    return [f"Known values: {label_map.describe()}."] * has_values + draft_map(issues, manifest.map, known)


def read_values(path: Path, label_map: LabelMap) -> tuple[np.ndarray, Colors]:
    """A label file's values and colors: (H, W) uint8, or (H, W, 3) uint8 where labels may be colored.

    SesamError if it cannot be read.

    Palette PNGs hold values, CamVid's colors where these are known. An RGB file whose channels are equal holds values
    too, as Scribbles4All's do, unless all of them are known as colors; another one colors.
    """
    with open_image(path, formats=LABEL_FORMATS) as opened:
        image = _without_alpha(opened)
        label = np.array(image)
        if image.mode == "P" and label_map.is_colored:
            colored = np.array(image.convert("RGB"))
            return (label if label_map.class_ids(colored)[1] else colored), NO_COLORS
        if image.mode == "P":
            of_file = np.reshape(image.getpalette() or [], (-1, 3)).tolist()
            colors = [int.from_bytes(bytes(color)) for color in full_palette(of_file)]
            return label, Colors(tuple(colors), tuple(np.flatnonzero(count_values(label)).tolist()))
        if image.mode == "L":
            return label, NO_COLORS
        is_gray = image.mode == "RGB" and not label_map.is_colored and bool((label == label[..., :1]).all())
        if is_gray and not label_map.are_colors(label[..., 0]):
            return label[..., 0], NO_COLORS
        if image.mode == "RGB" and label_map.colors:
            return label, NO_COLORS
        raise SesamError(f"{path} has mode {image.mode}; expected one 8-bit channel of class ids. Convert it.")


def _without_alpha(image: Image.Image) -> Image.Image:
    """The image without an alpha channel that is opaque everywhere."""
    is_opaque = image.mode in ("LA", "RGBA") and image.getextrema()[-1] == (255, 255)
    return image.convert(image.mode[:-1]) if is_opaque else image


def find_palette_conflicts(
    files: Iterable[tuple[str, Colors]], classes: Sequence[str], palette: Palette | None, label_map: LabelMap
) -> list[str]:
    """Where the colors of palette PNGs say that one value means two classes: as two files, or a file and `palette`.

    Or a file and dataset.map.

    A file may have any colors, as tools have their own; but where a color of one file has another value in the next,
    the values were given out anew per file, as conversions to palette images do.
    """
    known = {int.from_bytes(bytes(color)): k for k, color in enumerate(palette or ())}
    if len(known) < len(palette or ()):
        known = {}  # one color of two classes
    known |= label_map.of_map
    first: dict[int, tuple[str, int, tuple[int, ...]]] = {}
    conflicts = []
    for file, (colors, occurring) in files:
        values = [value for value in occurring if 0 <= label_map.table[value] < IGNORE_INDEX]
        for value in values:
            other, other_value, other_colors = first.setdefault(color := colors[value], (file, value, colors))
            if other_value != value and color not in (colors[other_value], other_colors[value]):
                conflicts.append(
                    f"{other} and {file}: #{color:06x} has value {other_value} in one, {value} in the other"
                )
                break
        else:
            named = [(value, known[colors[value]]) for value in values if colors[value] in known]
            wrong = [(value, k) for value, k in named if label_map.table[value] != k]
            if wrong and len(named) == len(values):
                value, k = wrong[0]
                name = "no class" if k == IGNORE_INDEX else classes[k]
                place = "dataset.map" if colors[value] in label_map.of_map else "dataset.palette"
                conflicts.append(f"{file}: value {value} has the color of {name} in {place}")
    return conflicts


def check_not_binary(where: str, classes: Sequence[str], occurring: np.ndarray) -> None:
    """SesamError for labels of two classes that are 0 and 255 alone. occurring: (256,) bool, the class ids in them."""
    if len(classes) == 2 and occurring[0] and not occurring[1] and occurring[IGNORE_INDEX]:
        raise SesamError(
            f"{where}: all labels are 0 or 255, and 255 is no class, so {classes[1]} does not occur. If 255 is that "
            f"class, set {format_map({'0': classes[0], '255': classes[1]})}"
        )


def check_not_everywhere(where: str, classes: Sequence[str], kind: str, kinds: set[str]) -> None:
    """SesamError for annotators' PNGs that are all fine masks, though `kind` says otherwise. kinds: as they look."""
    if kind not in ("scribble", "point", "box") or kinds != {"fine"}:
        return
    values = {str(k): name for k, name in enumerate(classes)}
    raise SesamError(
        f"{where}: every image is labeled everywhere, but weak_labels.kind is {kind}; 255 is unlabeled.\n"
        "  If 0 is unlabeled in these labels alone, save it as 255.\n"
        f"  If 0 is unlabeled in all labels, set {format_map(values | {'0': None})}\n"
        f"  If these are fine masks, set {format_map(values)}"
    )


def class_names_and_palette(config: DatasetParams) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Class names and RGB colors: mmsegmentation's, CamVid's, or those that params.yaml gives a folder."""
    if config.classes is not None:
        palette = [ImageColor.getrgb(color)[:3] for color in config.palette or []]
        return config.classes, palette or color_wheel(len(config.classes))
    if config.format == "camvid":
        return list(CAMVID), [colors[0] for colors in CAMVID.values()]
    from mmseg.datasets import ADE20KDataset, CityscapesDataset, PascalVOCDataset  # slow, and not for the workers

    known = {"cityscapes": CityscapesDataset, "ade20k": ADE20KDataset, "voc": PascalVOCDataset}[config.format].METAINFO
    return list(known["classes"]), [tuple(color) for color in known["palette"]]


def color_wheel(num_classes: int) -> list[tuple[int, int, int]]:
    """Distinct RGB colors for data sets without a palette."""
    turns = [
        colorsys.hsv_to_rgb(k / num_classes, 0.85 if k % 2 else 0.55, 0.95 if k % 3 else 0.7)
        for k in range(num_classes)
    ]
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in turns]
