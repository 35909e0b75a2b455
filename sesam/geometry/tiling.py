"""Overlapping tiles along an axis."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from sesam.errors import SesamError

MIN_OVERLAP = 2


def check_overlap(tile_size: int, overlap: int) -> None:
    """SesamError unless tiles of `tile_size` pixels can overlap by `overlap` pixels."""
    if not MIN_OVERLAP <= overlap <= tile_size // 2:
        raise SesamError(f"--overlap must be {MIN_OVERLAP} to half of --tile-size, {tile_size // 2} pixels.")


def tile_starts(length: int, tile_size: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover `length` pixels and overlap their neighbors by at least `overlap`."""
    if length <= tile_size:
        return [0]
    count = -(-(length - overlap) // (tile_size - overlap))
    return [round(k * (length - tile_size) / (count - 1)) for k in range(count)]


def tile_slices(length: int, tile_size: int, overlap: int) -> Iterator[tuple[slice, slice, slice]]:
    """Per tile on an axis, in pixels: the tile, its center, its center within it. The centers partition the axis."""
    starts = tile_starts(length, tile_size, overlap)
    # inside the image at least overlap / 2 from the tiles' edges
    edges = [0, *((start + tile_size + following) // 2 for start, following in pairwise(starts)), length]
    for start, (first, stop) in zip(starts, pairwise(edges), strict=True):
        yield slice(start, min(start + tile_size, length)), slice(first, stop), slice(first - start, stop - start)


def stitch_tiles(
    shape: tuple[int, ...], tile_size: int, overlap: int, label_tile: Callable[[tuple[slice, slice]], np.ndarray]
) -> np.ndarray:
    """The labels (H, W) uint8 whose tiles `label_tile` returns; each tile contributes its center. Sides in pixels."""
    labels = np.empty(shape, np.uint8)
    for rows, center_rows, inside_rows in tile_slices(shape[0], tile_size, overlap):
        for columns, center_columns, inside_columns in tile_slices(shape[1], tile_size, overlap):
            labels[center_rows, center_columns] = label_tile((rows, columns))[inside_rows, inside_columns]
    return labels
