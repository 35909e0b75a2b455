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
from stages.datasets.values import Meaning, read_values

# what the names of label files end in, after the image's id; Scribbles4All has Cityscapes' own names
ENDINGS = {"cityscapes": ("_gtCoarse_labelIds", "_gtFine_labelIds")}
# what ScribbleSup calls VOC's classes
SCRIBBLESUP = {
    "plane": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "plant": "pottedplant",
    "monitor": "tvmonitor",
}


@dataclass(frozen=True)
class Annotation:
    """What an annotator made of one image: a file, or the clicks that a file has for it."""

    path: Path
    clicks: tuple[tuple[int, int, int], ...] | None = None  # x, y, class


def find_annotations(origin: Path, kind: str) -> dict[str, Annotation]:
    """The annotations at `origin` by image id.

    origin: a folder of PNGs or of ScribbleSup's XML files, at any depth, named by the image's id; or the JSON file
    of What's the Point. SesamError if there is none.
    """
    if origin.suffix == ".json":
        return {
            k: Annotation(origin, tuple((click["x"], click["y"], click["cls"]) for click in clicks))
            for k, clicks in _read_clicks(origin).items()
        }
    if not origin.is_dir():
        raise SesamError(f"{origin} (weak.origin) is missing. It says where the annotators' labels lie.")
    found: dict[str, Annotation] = {}
    for path in sorted(path for path in origin.rglob("*") if path.suffix in (".png", ".xml")):
        name = path.relative_to(origin).with_suffix("")
        for end in ENDINGS.get(kind, ("",)):
            if path.stem.endswith(end):
                k = name.as_posix() if kind == "folder" else name.name.removesuffix(end)
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
) -> tuple[np.ndarray, list[str]]:
    """An annotation as weak labels (H, W) uint8, 255 = unlabelled, and what in it names no class.

    size: of the image, (H, W), which clicks do not tell. thickness: of the strokes drawn for XML scribbles, radius: of
    the discs drawn for clicks, both pixels. SesamError if it cannot be read.
    """
    if annotation.clicks is not None:
        return draw_points(annotation.clicks, size, classes, radius)
    if annotation.path.suffix == ".xml":
        return draw_strokes(annotation.path, classes, thickness)
    return meaning.class_ids(read_values(annotation.path, coloured=bool(meaning.colours)))


def draw_strokes(path: Path, classes: Sequence[str], thickness: int) -> tuple[np.ndarray, list[str]]:
    """ScribbleSup's XML (Lin et al. 2016): each `polygon`, an open line of points, as a stroke of its class.

    Some of its points lie outside the image, whose size it tells; what is drawn there is lost.
    """
    try:
        root = ElementTree.parse(path).getroot()
        size = tuple(int(root.findtext(f"size/{side}")) for side in ("height", "width"))
        strokes = root.findall("polygon")
        lines = [(s.findtext("tag", "").strip(), [_pixel(point) for point in s.findall("point")]) for s in strokes]
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as problem:
        raise SesamError(f"{path} cannot be read as ScribbleSup's XML ({problem}). Replace the file.") from None
    drawn = np.full(size, UNLABELLED, np.uint8)
    strange = set()
    for tag, points in lines:
        name = SCRIBBLESUP.get(tag, tag)
        if name not in classes:
            strange.add(repr(tag))
        elif points:
            line = np.array(points, np.int32).reshape(-1, 1, 2)
            cv2.polylines(drawn, [line], False, classes.index(name), thickness)
    return drawn, sorted(strange)


def draw_points(
    clicks: Sequence[tuple[int, int, int]], size: tuple[int, int], classes: Sequence[str], radius: int
) -> tuple[np.ndarray, list[str]]:
    """What's the Point (Bearman et al. 2016): a disc of its class for each click (x, y, class id)."""
    drawn = np.full(size, UNLABELLED, np.uint8)
    for x, y, k in clicks:
        if 0 <= k < len(classes):
            cv2.circle(drawn, (x, y), radius, k, cv2.FILLED)
    return drawn, sorted({str(k) for _, _, k in clicks if not 0 <= k < len(classes)})


def _pixel(point: ElementTree.Element) -> tuple[int, int]:
    return int(point.findtext("X")), int(point.findtext("Y"))


def _read_clicks(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if all(
            isinstance(click[key], int) for clicks in found.values() for click in clicks for key in ("x", "y", "cls")
        ):
            return found
        problem = "x, y and cls of a click must be whole numbers"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise SesamError(
        f"{path} cannot be read as What's the Point's clicks, a list of {{x, y, cls}} for each image id ({problem})."
    )
