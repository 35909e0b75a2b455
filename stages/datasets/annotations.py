"""Weak labels that annotators made, in the form in which they are published."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stages.common.errors import SesamError
from stages.common.labels import UNLABELLED
from stages.datasets.faults import SIZES, UNREADABLE, VALUES, Faulty
from stages.datasets.layouts import files_below
from stages.datasets.values import Meaning, read_values

# what the names of label files may end in, after the image's id; Scribbles4All has Cityscapes' own names
ENDINGS = {"cityscapes": ("_gtCoarse_labelIds", "_gtFine_labelIds", "")}
# what ScribbleSup calls VOC's classes
SCRIBBLESUP = {
    "plane": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "plant": "pottedplant",
    "monitor": "tvmonitor",
}
FAR = 2**14  # pixels; OpenCV draws nothing right beyond


@dataclass(frozen=True)
class Annotation:
    """What annotators made of one image: a file, or the clicks that a file has for it."""

    path: Path
    clicks: Any = None


def find_annotations(origin: Path, kind: str) -> dict[str, Annotation]:
    """The annotations at `origin` by image id.

    origin: a folder of PNGs or of ScribbleSup's XML files, at any depth, named by the image's id; or the JSON file
    of What's the Point. SesamError if there is none, or two for an image.
    """
    if origin.suffix.lower() == ".json":
        return {k: Annotation(origin, clicks) for k, clicks in _read_json(origin).items()}
    if not origin.is_dir():
        raise SesamError(f"{origin} (weak.origin) is neither a folder of PNGs or XML files nor a .json file of clicks.")
    found: dict[str, Annotation] = {}
    for path in files_below(origin):
        if path.suffix.lower() in (".png", ".xml"):
            name = path.relative_to(origin).with_suffix("").as_posix() if kind == "folder" else path.stem
            end = next(end for end in ENDINGS.get(kind, ("",)) if name.endswith(end))
            k = name.removesuffix(end)
            if k in found:
                raise SesamError(f"{path} and {found[k].path} both annotate {k}. Remove one.")
            found[k] = Annotation(path)
    if not found:
        raise SesamError(f"{origin} (weak.origin) holds no annotation; expected PNG or XML files named by image id.")
    return found


def read_annotation(
    annotation: Annotation,
    size: tuple[int, int],
    classes: Sequence[str],
    meaning: Meaning,
    thickness: int,
    radius: int,
) -> np.ndarray:
    """An annotation of an image of `size` (H, W) as weak labels (H, W) uint8, 255 = unlabelled.

    thickness: of the strokes drawn for XML scribbles, radius: of the discs drawn for clicks, both pixels. Faulty if it
    cannot be read, has another size or names what is no class.
    """
    if annotation.clicks is not None:
        drawn, strange = draw_points(annotation, size, len(classes), radius)
    elif annotation.path.suffix.lower() == ".xml":
        drawn, strange = draw_strokes(annotation.path, size, classes, thickness)
    else:
        try:
            drawn, strange = meaning.class_ids(read_values(annotation.path, meaning))
        except SesamError as problem:
            raise Faulty(UNREADABLE, str(problem)) from None
        _check_size(annotation.path, drawn.shape, size)
    if strange:
        raise Faulty(VALUES, f"{annotation.path}: {', '.join(strange)}")
    return drawn


def draw_strokes(
    path: Path, size: tuple[int, int], classes: Sequence[str], thickness: int
) -> tuple[np.ndarray, list[str]]:
    """ScribbleSup's XML (Lin et al. 2016): each `polygon`, an open line of points, as a stroke of its class.

    Some of its points lie outside the image; what is drawn there is lost. Returns the labels (H, W) uint8 and the
    tags that name no class; Faulty if it cannot be read or is of another size.
    """
    try:
        root = ElementTree.parse(path).getroot()
        its_size = (int(root.findtext("size/height", "")), int(root.findtext("size/width", "")))
        lines = [(s.findtext("tag", "").strip(), [_pixel(point) for point in s.findall("point")]) for s in root]
    except (OSError, ElementTree.ParseError, TypeError, ValueError, LookupError, OverflowError) as problem:
        raise Faulty(UNREADABLE, f"{path} cannot be read as ScribbleSup's XML ({problem})") from None
    _check_size(path, its_size, size)
    drawn = np.full(size, UNLABELLED, np.uint8)
    strange = set()
    for tag, points in lines:
        name = SCRIBBLESUP.get(tag, tag)
        if not points:
            continue
        if name not in classes:
            strange.add(repr(tag))
            continue
        line = np.array(points).clip(-FAR, FAR).astype(np.int32).reshape(-1, 1, 2)
        cv2.polylines(drawn, [line], False, classes.index(name), thickness)
    return drawn, sorted(strange)


def draw_points(
    annotation: Annotation, size: tuple[int, int], classes: int, radius: int
) -> tuple[np.ndarray, list[str]]:
    """What's the Point (Bearman et al. 2016): a disc of its class for each click {x, y, cls}.

    Returns the labels (H, W) uint8 and the numbers that are no class; Faulty if the clicks are none.
    """
    try:
        clicks = [tuple(int(click[key]) for key in ("x", "y", "cls")) for click in annotation.clicks]
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        text = f"clicks in {annotation.path} that are no {{x, y, cls}} of numbers ({type(problem).__name__}: {problem})"
        raise Faulty(UNREADABLE, text) from None
    drawn = np.full(size, UNLABELLED, np.uint8)
    for x, y, k in clicks:
        if 0 <= k < classes and max(abs(x), abs(y)) < FAR:
            cv2.circle(drawn, (x, y), radius, k, cv2.FILLED)
    return drawn, sorted({str(k) for _, _, k in clicks if not 0 <= k < classes})


def _check_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != tuple(size):
        raise Faulty(SIZES, f"{path} is {found[1]}x{found[0]}, its image {size[1]}x{size[0]} pixels")


def _pixel(point: ElementTree.Element) -> tuple[int, int]:
    return int(point.findtext("X", "")), int(point.findtext("Y", ""))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        problem = "" if isinstance(found, dict) else "it is no mapping"
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        raise SesamError(f"{path} cannot be read as What's the Point's clicks, a list for each image id ({problem}).")
    return found
