"""Masks as COCO compressed run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco


def mask_to_counts(mask: np.ndarray) -> np.ndarray:
    """Run lengths of (H, W) bool column by column, outside first, int64: what `encode_counts` takes."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    return np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)


def mask_to_rle(mask: np.ndarray) -> str:
    """(H, W) bool as COCO compressed run lengths."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def counts_to_rle(counts: np.ndarray, shape: tuple[int, int]) -> str:
    """Run lengths column by column, outside first, as COCO compresses them."""
    return coco.frPyObjects({"counts": counts.tolist(), "size": list(shape)}, *shape)["counts"].decode("ascii")


def rle_to_mask(counts: str, shape: tuple[int, int]) -> np.ndarray:
    """COCO compressed run lengths as (H, W) bool."""
    return coco.decode(to_coco_rle(counts, shape)).astype(bool)


def rle_to_counts(rle: str) -> np.ndarray:
    """The counts that COCO compressed, int64; some may be negative, if it did not compress them."""
    chunks = np.frombuffer(rle.encode("ascii"), np.uint8).astype(np.int64) - 48
    last = chunks & 32 == 0  # of a number: five bits a character, the lowest first, the sixth says that more follow
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(chunks)) - np.repeat(starts, np.diff([*starts, len(chunks)]))
    if place.max() > 6 or not last[-1]:
        return np.array([-1])
    values = np.add.reduceat((chunks & 31) << 5 * place, starts)
    ends = np.append(starts[1:], len(chunks)) - 1
    values -= np.where(chunks[ends] & 16, np.int64(1) << 5 * (place[ends] + 1), 0)  # sign
    for first in (1, 2):  # from the fourth on a number is the difference to the one before the last
        values[first::2] = np.cumsum(values[first::2])
    return values


def to_coco_rle(counts: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Run lengths in the form that pycocotools computes with."""
    return {"size": list(shape), "counts": counts.encode("ascii")}
