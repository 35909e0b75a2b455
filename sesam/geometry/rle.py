"""Masks as COCO run-length encodings (RLE): compressed counts, column-major run lengths, background first."""

from typing import Any

import numpy as np
from pycocotools import mask as coco

CocoRle = dict[str, Any]  # a mask as pycocotools computes with it


def mask_to_counts(mask: np.ndarray) -> np.ndarray:
    """The counts of a mask (H, W) bool, int64."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    return np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)


def mask_to_rle(mask: np.ndarray) -> str:
    """The RLE of a mask (H, W) bool."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def counts_to_rle(counts: np.ndarray, shape: tuple[int, int]) -> str:
    """The RLE of counts."""
    return coco.frPyObjects({"counts": counts.tolist(), "size": list(shape)}, *shape)["counts"].decode("ascii")


def rle_to_mask(rle: str, shape: tuple[int, int]) -> np.ndarray:
    """The mask of an RLE, (H, W) bool."""
    return coco.decode(to_coco_rle(rle, shape)).astype(bool)


def rle_to_counts(rle: str) -> np.ndarray:
    """The counts of an RLE, int64, negative if invalid. Of a number, each character holds 5 bits, the lowest first."""
    chunks = np.frombuffer(rle.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = chunks & 32 == 0  # else more characters follow
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    position = np.arange(len(chunks)) - np.repeat(starts, np.diff([*starts, len(chunks)]))
    if position.max() > 6 or not last[-1]:
        return np.array([-1])
    counts = np.add.reduceat((chunks & 31) << 5 * position, starts)
    ends = np.append(starts[1:], len(chunks)) - 1
    counts -= np.where(chunks[ends] & 16, np.int64(1) << 5 * (position[ends] + 1), 0)  # sign
    for first in (1, 2):  # from the fourth on, a number is the difference to the last but one
        counts[first::2] = np.cumsum(counts[first::2])
    return counts


def to_coco_rle(rle: str, shape: tuple[int, int]) -> CocoRle:
    """An RLE as pycocotools takes it."""
    return {"size": list(shape), "counts": rle.encode("ascii")}
