"""How tiles with overlap cover an axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from sesam.errors import SesamError

MIN_OVERLAP = 2


def check_overlap(tile: int, overlap: int) -> None:
    """SesamError if tiles of so many pixels cannot overlap so far."""
    if not MIN_OVERLAP <= overlap <= tile // 2:
        raise SesamError(f"--overlap must be {MIN_OVERLAP} to half of --tile-size, {tile // 2} pixels.")


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that cover `length` pixels and share at least `measure_coverage` with their neighbors."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def tile_centers(begins: Sequence[int], tile: int, length: int) -> list[tuple[int, int]]:
    """Of each tile the first pixel of its middle and the one after its last.

    The middles divide the axis: each pixel is in one, and at least overlap / 2 from its tile's edges but at the border.
    """
    edges = [0, *((one + tile + other) // 2 for one, other in pairwise(begins)), length]
    return list(pairwise(edges))


def tile_slices(length: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice, slice]]:
    """How tiles cover an axis of `length` pixels: where a tile lies, where its middle lies, and that in the tile."""
    begins = tile_starts(length, tile, overlap)
    for start, (first, last) in zip(begins, tile_centers(begins, tile, length), strict=True):
        yield slice(start, min(start + tile, length)), slice(first, last), slice(first - start, last - start)
