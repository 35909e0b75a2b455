"""CVAT for images 1.1, its XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np

from sesam.datasets.annotation_shapes import Drawing, Kind, Shape, box_corners
from sesam.datasets.annotations.common import runs_to_mask

KINDS: dict[str, Kind] = {"polygon": "polygon", "polyline": "line", "points": "point"}


def read(root: ElementTree.Element) -> list[tuple[str, Drawing]]:
    """CVAT for images 1.1: what stands in each <image>, by z_order. ValueError, KeyError or TypeError if it is none."""
    if root.find("track") is not None:
        raise ValueError("a video's tracks; export the frames as 'CVAT for images 1.1'")
    found = []
    for image in root.iter("image"):
        size = int(image.attrib["height"]), int(image.attrib["width"])
        if not all(1 <= side <= 1 << 16 for side in size):
            raise ValueError(f"an image of {size[1]}x{size[0]} pixels")
        drawn = sorted(image, key=lambda one: int(one.get("z_order", "0")))
        shapes = [shape for one in drawn if (shape := _shape(one, size)) is not None]
        unread = {one.tag for one in drawn if one.tag not in ("polygon", "polyline", "points", "box", "mask", "tag")}
        found.append((image.attrib["name"], Drawing(size, tuple(shapes), tuple(sorted(unread)))))
    return found


def _shape(one: ElementTree.Element, size: tuple[int, int]) -> Shape | None:
    if one.tag in KINDS:
        points = [tuple(map(float, pair.split(","))) for pair in one.attrib["points"].split(";")]
        return Shape(one.attrib["label"], KINDS[one.tag], np.array(points, float).reshape(-1, 2))
    if one.tag == "box":
        left, top, right, bottom = (float(one.attrib[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        corners = box_corners(left, top, right, bottom, float(one.get("rotation", "0")))
        return Shape(one.attrib["label"], "polygon", corners)
    if one.tag == "mask":
        counts = [int(number) for number in one.attrib["rle"].split(",")]
        window = [int(one.attrib[side]) for side in ("left", "top", "width", "height")]
        return Shape(one.attrib["label"], "mask", pixels=partial(_mask, counts, window, size))
    return None


def _mask(counts: list[int], window: list[int], size: tuple[int, int]) -> np.ndarray:
    """Run lengths of a window of the image, row by row, the first of no mask."""
    left, top, width, height = window
    if min(window) < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError("a mask that reaches out of its image")
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = runs_to_mask(counts, height, width)
    return mask
