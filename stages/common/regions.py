"""Connected regions, each handled in its own bounding box."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from pycocotools import mask as coco
from skimage.morphology import skeletonize

Order = Literal["area", "iou"]


@dataclass(frozen=True)
class Region:
    """A mask in its bounding box: `mask` (h, w) bool, whose corner lies at (top, left) of the image."""

    top: int
    left: int
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    def depth(self) -> np.ndarray:
        """Distance of every pixel to the nearest pixel outside, (h, w) float32; 1 on the boundary, 0 outside.

        The border of the image counts as outside.
        """
        padded = np.pad(self.mask.astype(np.uint8), 1)
        return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]

    def skeleton(self) -> np.ndarray:
        """The topological skeleton, (h, w) bool."""
        return skeletonize(np.pad(self.mask, 1))[1:-1, 1:-1]

    def whole(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask in an image of `shape`, (H, W) bool."""
        image = np.zeros(shape, bool)
        image[self.window] = self.mask
        return image


def connected(mask: np.ndarray, min_area: int = 1, connectivity: int = 8) -> Iterator[Region]:
    """The 8- or 4-connected regions of (H, W) bool of at least `min_area` pixels, in scan order."""
    count, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    for k in range(1, count):
        left, top, width, height, area = stats[k]
        if area >= min_area:
            yield Region(int(top), int(left), ids[top : top + height, left : left + width] == k)


def bounded(mask: np.ndarray) -> Region:
    """All pixels of (H, W) bool, at least one, as one region, connected or not."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return Region(top, left, mask[top : top + height, left : left + width])


def deepest(depth: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel farthest from the outside; the first in scan order of several."""
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y)


def painting_order(components: Sequence[dict[str, Any]], shape: tuple[int, int], order: Order) -> list[dict[str, Any]]:
    """Selected components, those first that others are painted over.

    area: largest first, so that small objects end on top. iou: lowest predicted IoU first, components
    without a kept mask before all. Each has its `rle` and the `iou` of its mask or None.
    """
    if order == "area":
        return sorted(components, key=lambda component: -int(coco.area(coco_mask(component["rle"], shape))))
    return sorted(components, key=lambda component: -math.inf if component["iou"] is None else component["iou"])


def encode_mask(mask: np.ndarray) -> str:
    """(H, W) bool as COCO compressed run lengths."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def encode_counts(counts: np.ndarray, shape: tuple[int, int]) -> str:
    """Run lengths column by column, outside first, as COCO compresses them."""
    return coco.frPyObjects({"counts": counts.tolist(), "size": list(shape)}, *shape)["counts"].decode("ascii")


def decode_mask(counts: str, shape: tuple[int, int]) -> np.ndarray:
    """COCO compressed run lengths as (H, W) bool."""
    return coco.decode(coco_mask(counts, shape)).astype(bool)


def coco_mask(counts: str, shape: tuple[int, int]) -> dict:
    """Run lengths in the form that pycocotools computes with."""
    return {"size": list(shape), "counts": counts.encode("ascii")}
