"""Label Studio's JSON: brush, polygon, keypoint and rectangle."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import Entry, Number, Pixels, Point


class _Value(Entry):
    points: list[Point] | None = None
    x: Number | None = None
    y: Number | None = None
    width: Number | None = None
    height: Number | None = None
    rotation: Number = 0.0
    format: Literal["rle"] | None = None
    rle: list[Annotated[int, Field(ge=0, le=255)]] | None = None
    brushlabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    keypointlabels: list[str] | None = None
    rectanglelabels: list[str] | None = None


class _Result(Entry):
    type: str
    value: dict[str, Any] = Field(default_factory=dict)
    original_width: Pixels | None = None
    original_height: Pixels | None = None


class _Annotation(Entry):
    result: list[_Result]
    was_cancelled: bool = False


class _Task(Entry):
    data: dict[str, Any]
    annotations: list[_Annotation]


READ = ("brushlabels", "polygonlabels", "keypointlabels", "rectanglelabels")


def read(value: Any) -> list[tuple[str, Drawing]]:
    """Label Studio's JSON: the last annotation of each task that was not cancelled; ValidationError if it is none."""
    found = []
    for task in TypeAdapter(list[_Task]).validate_python(value):
        names = [text for key, text in task.data.items() if isinstance(text, str)]
        name = next((task.data[key] for key in ("image", "img", "url") if isinstance(task.data.get(key), str)), None)
        done = [one for one in task.annotations if not one.was_cancelled]
        if not done or (name is None and not names):
            continue
        shapes, unread, sizes = [], set(), set()
        for one in done[-1].result:
            if one.type not in READ:
                unread |= {one.type} if one.type.endswith("labels") else set()
                continue
            if one.original_width is None or one.original_height is None:
                raise ValueError(f"{one.type} without original_width and original_height")
            size = one.original_height, one.original_width
            sizes.add(size)
            shapes += _shapes(one.type, _Value.model_validate(one.value), size)
        if len(sizes) > 1:
            raise ValueError(f"two sizes of the image {name or names[0]}")
        if sizes:
            found.append((name or names[0], Drawing(sizes.pop(), tuple(shapes), tuple(sorted(unread)))))
    return found


def _shapes(kind: str, value: _Value, size: tuple[int, int]) -> list[Shape]:
    scale = np.array(size[::-1]) / 100  # its numbers are percent
    names = getattr(value, kind) or []
    if kind == "polygonlabels" and value.points is not None:
        points = np.array(value.points, float).reshape(-1, 2) * scale
        return [Shape(name, "polygon", points) for name in names]
    if kind == "brushlabels" and value.rle is not None:
        content = bytes(value.rle)
        return [Shape(name, "mask", pixels=partial(decode_brush, content, size)) for name in names]
    if value.x is not None and value.y is not None:
        corner = np.array([value.x, value.y]) * scale
        if kind == "keypointlabels":
            return [Shape(name, "point", corner[None]) for name in names]
        if kind == "rectanglelabels" and value.width is not None and value.height is not None:
            (left, top), (width, height) = corner, np.array([value.width, value.height]) * scale
            corners = box_corners(left, top, left + width, top + height, value.rotation, about="corner")
            return [Shape(name, "polygon", corners) for name in names]
    raise ValueError(f"{kind} without its numbers")


def decode_brush(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """A brush's pixels, (H, W) bool: RGBA values packed bit by bit; ValueError if they are not those of the image.

    32 bits: how many values. 5 bits: their size less one. Four times 4 bits: the sizes of lengths less one. Then runs:
    a bit, whether one value is repeated; 2 bits, which size the length has; the length less one; one value, or so many.
    """
    bits = "".join(f"{byte:08b}" for byte in content)
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a brush that ends too early")
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush of {total // 4} pixels in an image of {size[1]}x{size[0]}")
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint32)
    done = 0
    while done < total:
        repeated, length = read(1), read(lengths[read(2)]) + 1
        if done + length > total:
            raise ValueError("a brush whose runs do not fit its image")
        if repeated:
            values[done : done + length] = read(word)
        else:
            values[done : done + length] = [read(word) for _ in range(length)]
        done += length
    return values.reshape(*size, 4)[..., 3] > 0
