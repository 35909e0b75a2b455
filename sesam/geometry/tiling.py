"""Overlapping tiles along an axis."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from sesam.errors import SesamError

MIN_OVERLAP = 2


def check_overlap(tile: int, overlap: int) -> None:
    """SesamError unless tiles of `tile` pixels can overlap by `overlap` pixels."""
    if not MIN_OVERLAP <= overlap <= tile // 2:
        raise SesamError(f"--overlap must be {MIN_OVERLAP} to half of --tile-size, {tile // 2} pixels.")


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover `length` pixels and overlap their neighbors by at least `overlap`."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tile_centers(starts: Sequence[int], tile: int, length: int) -> list[tuple[int, int]]:
    """(start, stop) of each tile's center.

    The centers partition the axis; inside the image they are at least overlap / 2 from their tile's edges.
    """
    edges = [0, *((start + tile + following) // 2 for start, following in pairwise(starts)), length]
    return list(pairwise(edges))


def tile_slices(length: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice, slice]]:
    """Per tile on an axis of `length` pixels: the tile, its center, and its center within the tile."""
    starts = tile_starts(length, tile, overlap)
    for start, (first, stop) in zip(starts, tile_centers(starts, tile, length), strict=True):
        yield slice(start, min(start + tile, length)), slice(first, stop), slice(first - start, stop - start)
