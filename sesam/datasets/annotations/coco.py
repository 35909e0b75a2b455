"""COCO's JSON: polygons, run lengths, boxes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import Entry, Number, Pixels, runs_to_mask
from sesam.geometry.rle import rle_to_counts


class _Rle(Entry):
    counts: list[Annotated[int, Field(ge=0)]] | Annotated[str, Field(pattern="^[0-o]+$")]
    size: tuple[Pixels, Pixels]


class _Image(Entry):
    id: int
    file_name: str
    width: Pixels
    height: Pixels


class _Annotation(Entry):
    image_id: int
    category_id: int
    segmentation: list[list[Number]] | _Rle | None = None
    bbox: tuple[Number, Number, Number, Number] | None = None
    keypoints: list[Number] | None = None


class _Category(Entry):
    id: int
    name: str


class _Document(Entry):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read(value: Any) -> list[tuple[str, Drawing]]:
    """COCO's JSON: polygons, run lengths, and boxes where there is neither; ValidationError if it is none.

    Keypoints are not read; with a segmentation of the same object they are left out.
    """
    document = _Document.model_validate(value)
    names = {one.id: one.name for one in document.categories}
    shapes: dict[int, list[Shape]] = {one.id: [] for one in document.images}
    unread: dict[int, tuple[str, ...]] = {}
    sizes = {one.id: (one.height, one.width) for one in document.images}
    if len(names) < len(document.categories) or len(sizes) < len(document.images):
        raise ValueError("two images or two categories of one id")
    for one in document.annotations:
        if one.image_id not in shapes or one.category_id not in names:
            raise ValueError(f"an annotation of image {one.image_id} or category {one.category_id}, which it has not")
        if isinstance(one.segmentation, _Rle) and one.segmentation.size != sizes[one.image_id]:
            raise ValueError(f"a mask of {one.segmentation.size[1]}x{one.segmentation.size[0]} pixels")
        if one.keypoints and not one.segmentation:
            unread[one.image_id] = ("keypoints",)
        else:
            shapes[one.image_id] += _shapes(one, names[one.category_id])
    return [
        (one.file_name, Drawing(sizes[one.id], tuple(shapes[one.id]), unread.get(one.id, ())))
        for one in document.images
    ]


def _shapes(one: _Annotation, name: str) -> list[Shape]:
    if isinstance(one.segmentation, _Rle):
        return [Shape(name, "mask", pixels=partial(_mask, one.segmentation))]
    if one.segmentation:
        return [
            Shape(name, "polygon", np.array(flat[: len(flat) // 2 * 2], float).reshape(-1, 2))
            for flat in one.segmentation
        ]
    if one.bbox:
        left, top, width, height = one.bbox
        return [Shape(name, "polygon", box_corners(left, top, left + width, top + height))]
    return []


def _mask(rle: _Rle) -> np.ndarray:
    counts = rle_to_counts(rle.counts).tolist() if isinstance(rle.counts, str) else rle.counts
    height, width = rle.size
    return runs_to_mask(counts, width, height).T  # column by column
