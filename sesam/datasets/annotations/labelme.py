"""labelme's JSON, a file an image."""

from __future__ import annotations

import base64
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from sesam.datasets.annotation_shapes import Drawing, Kind, Shape, box_corners
from sesam.datasets.annotations.common import Entry, Pixels, Point


class _Shape(Entry):
    label: str
    points: list[Point]
    shape_type: str
    mask: str | None = None


class _Document(Entry):
    shapes: list[_Shape]
    imagePath: str
    imageHeight: Pixels
    imageWidth: Pixels


KINDS: dict[str, Kind] = {
    "polygon": "polygon",
    "oriented_rectangle": "polygon",
    "line": "line",
    "linestrip": "line",
    "point": "point",
    "points": "point",
}


def read(value: Any) -> list[tuple[str, Drawing]]:
    """labelme's JSON of one image; ValidationError if it is none."""
    document = _Document.model_validate(value)
    size = document.imageHeight, document.imageWidth
    shapes, unread = [], set()
    for one in document.shapes:
        points = np.array(one.points, float).reshape(-1, 2)
        if one.shape_type in KINDS:
            shapes.append(Shape(one.label, KINDS[one.shape_type], points))
        elif one.shape_type == "rectangle" and len(points) == 2:
            shapes.append(Shape(one.label, "polygon", box_corners(*points.min(0), *points.max(0))))
        elif one.shape_type == "mask" and one.mask is not None and len(points):
            shapes.append(Shape(one.label, "mask", pixels=partial(_mask, one.mask, points[0], size)))
        else:
            unread.add(one.shape_type)
    return [(document.imagePath, Drawing(size, tuple(shapes), tuple(sorted(unread))))]


def _mask(content: str, corner: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    try:
        with Image.open(BytesIO(base64.b64decode(content, validate=True)), formats=("PNG",)) as image:
            part = np.array(image.convert("L")) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as problem:
        raise ValueError(f"a mask that is no PNG ({problem})") from None
    left, top = np.round(corner).astype(int)  # as labelme draws it
    if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise ValueError("a mask that reaches out of its image")
    mask = np.zeros(size, bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask
