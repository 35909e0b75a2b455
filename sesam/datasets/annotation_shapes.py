"""What people draw in an annotation tool, and what becomes of it.

| shape | as weak label |
| --- | --- |
| point | a disc of `weak_labels.point.radius` |
| line | a stroke of `weak_labels.scribble.thickness` |
| polygon, box | its inside |
| mask | its pixels |

Later shapes lie on top of earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco

from sesam.geometry.strokes import draw_stroke
from sesam.labels import IGNORE_INDEX

FAR = 2**14  # pixels outside an image: pycocotools takes time and memory for every pixel of an edge
Kind = Literal["point", "line", "polygon", "mask"]


NOWHERE = np.empty((0, 2))


class Shape(NamedTuple):
    """One shape of a class, by its name.

    points: (N, 2) float x, y in pixels; the image's first pixel covers 0 to 1. pixels: of a mask, a function that gives
    it as (H, W) bool of the whole image, ValueError if it cannot be; then there are no points.
    """

    name: str
    kind: Kind
    points: np.ndarray = NOWHERE
    pixels: Callable[[], np.ndarray] | None = None


class Drawing(NamedTuple):
    """What was drawn in one image of `size` (H, W). unread: kinds of shapes in it that are not read."""

    size: tuple[int, int]
    shapes: tuple[Shape, ...]
    unread: tuple[str, ...] = ()


def box_corners(
    left: float,
    top: float,
    right: float,
    bottom: float,
    turned: float = 0.0,
    about: Literal["center", "corner"] = "center",
) -> np.ndarray:
    """The corners (4, 2) of a box turned clockwise by degrees about its center, or its first corner."""
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    middle = corners.mean(0) if about == "center" else corners[0]
    angle = np.deg2rad(turned)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (corners - middle) @ turn + middle


def draw_shapes(drawing: Drawing, classes: Sequence[str], thickness: int, radius: int) -> tuple[np.ndarray, list[str]]:
    """A drawing as labels (H, W) uint8, 255 where nothing was drawn, and its class names that are none.

    ValueError if a mask is not of the image.
    """
    labels = np.full(drawing.size, IGNORE_INDEX, np.uint8)
    numbers = {name: k for k, name in enumerate(classes)}
    for shape in drawing.shapes:
        if (k := numbers.get(shape.name)) is not None:
            _draw(labels, shape, k, thickness, radius)
    return labels, sorted({repr(shape.name) for shape in drawing.shapes} - set(map(repr, classes)))


def clip_to_bounds(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Points (n, 2) x, y, brought to at most FAR outside an image of (height, width)."""
    return points.clip(-FAR, np.array(size[::-1]) + FAR)


def _draw(labels: np.ndarray, shape: Shape, k: int, thickness: int, radius: int) -> None:
    if shape.pixels is not None:
        mask = shape.pixels()
        if mask.shape != labels.shape:
            raise ValueError(f"a mask of {mask.shape[1]}x{mask.shape[0]} pixels")
        labels[mask] = k
        return
    points = clip_to_bounds(np.nan_to_num(shape.points), labels.shape)
    pixels = np.floor(points).astype(np.int32)
    if shape.kind == "polygon":
        (height, width), flat = labels.shape, points.ravel().tolist()
        if len(points) >= 3:
            labels[coco.decode(coco.frPyObjects([flat], height, width))[..., 0] > 0] = k
    elif shape.kind == "line" and len(points) > 1:
        labels[draw_stroke(labels.shape, pixels, thickness)] = k
    else:
        for x, y in pixels.tolist():
            cv2.circle(labels, (x, y), radius, k, cv2.FILLED)
