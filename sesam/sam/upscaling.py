"""Mask logits to run lengths at the image's resolution, upscaled only where a mask has an edge.

segment-anything upscales every logit to the model's input, crops the padding and scales to the image, both bilinear.
Both are linear, so a tile of the image is its logits between two small matrices: one for its rows, one for its columns.
If all logits of a tile have one sign, all its pixels have that sign too.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 64  # pixels of the image along each axis
# pixels of masks that exist at once, whatever the image's size and the number of prompts
MAX_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 28}


class Axis(NamedTuple):
    """How one axis of a mask is upscaled, tile by tile."""

    logits: Tensor  # (tiles, K) int64, the logits of each tile
    weight: Tensor  # (tiles, TILE, K) float32, their weight in each of the tile's pixels
    size: int  # pixels
    end: int  # one more than the last logit of any tile


@lru_cache(256)
def make_axis(num_logits: int, model: int, resized: int, size: int, device: torch.device) -> Axis:
    """For an image of `size` pixels that was resized to `resized` of the `model` pixels of SAM's input.

    num_logits: the length of the whole axis of SAM's mask.
    """
    # the scaling itself, applied to each unit vector, is its matrix
    unit = torch.eye(num_logits)[None, None]
    unit = F.interpolate(unit, (model, num_logits), mode="bilinear", align_corners=False)[:, :, :resized]
    matrix = F.interpolate(unit, (size, num_logits), mode="bilinear", align_corners=False)[0, 0]
    tiles = -(-size // TILE)
    rows = F.pad(matrix, (0, 0, 0, tiles * TILE - size)).view(tiles, TILE, num_logits)
    used = (rows != 0).any(dim=1)
    first = used.int().argmax(dim=1)
    last = num_logits - 1 - used.flip(1).int().argmax(dim=1)
    length = int((last - first).max()) + 1
    logits = first.clamp(max=num_logits - length)[:, None] + torch.arange(length)
    weight = rows.gather(2, logits[:, None].expand(-1, TILE, -1))
    return Axis(logits.to(device), weight.to(device), size, int(logits.max()) + 1)


def iter_counts(logits: Tensor, threshold: float, rows: Axis, columns: Axis) -> Iterator[np.ndarray]:
    """Per mask of (M, h, w), COCO's counts of where its upscaled logits exceed the threshold: as rows_to_counts."""
    masks_at_once = max(1, MAX_PIXELS[logits.device.type] // (rows.size * columns.size))
    for chunk in logits.split(masks_at_once):
        yield from rows_to_counts(upscale_transposed(chunk, rows, columns, threshold).flatten(1))


def upscale_transposed(logits: Tensor, rows: Axis, columns: Axis, threshold: float) -> Tensor:
    """Logits (M, h, w) float32 to masks (M, W, H) bool: column by column, as COCO's run lengths are."""
    # each tile's own logits: (M, tiles down, K down, w), then (M, tiles down, K down, tiles across, K across)
    tiles = logits[:, rows.logits][..., columns.logits]
    inside, touched = tiles.amin((2, 4)) > threshold, tiles.amax((2, 4)) > threshold
    # every pixel as its tile: (M, tiles across, TILE, tiles down, TILE); right but for tiles with an edge
    masks = inside.mT[:, :, None, :, None].repeat(1, 1, TILE, 1, TILE)
    mask, down, across = (touched & ~inside).nonzero(as_tuple=True)
    tiles_at_once = max(1, MAX_PIXELS[logits.device.type] // TILE**2)
    for m, i, j in zip(*(index.split(tiles_at_once) for index in (mask, down, across)), strict=True):
        # (N, TILE, K across) @ (N, K across, K down) @ (N, K down, TILE)
        upscaled = columns.weight[j] @ tiles[m, i, :, j].mT @ rows.weight[i].mT
        masks[m, j, :, i] = upscaled > threshold
    return masks.flatten(3).flatten(1, 2)[:, : columns.size, : rows.size]


def rows_to_counts(flat: Tensor) -> Iterator[np.ndarray]:
    """The run lengths of each row of (M, pixels) bool, int64, the first of False."""
    pixels = flat.shape[1]
    flat = F.pad(flat, (1, -(pixels + 1) % 8))  # a False before the first; rows of whole words of eight bytes
    changed = F.pad(flat[:, 1 : pixels + 1] ^ flat[:, :pixels], (0, flat.shape[1] - pixels)).unflatten(1, (-1, 8))
    # few words hold a change: only these are searched pixel by pixel
    row, word = changed.view(torch.int64)[..., 0].nonzero(as_tuple=True)
    hit, byte = changed[row, word].nonzero(as_tuple=True)
    row_of_edge, edge = row[hit].int().cpu().numpy(), (word[hit] * 8 + byte).int().cpu().numpy()
    limits = np.searchsorted(row_of_edge, np.arange(len(flat) + 1))
    for k in range(len(flat)):
        yield np.diff(edge[limits[k] : limits[k + 1]], prepend=0, append=pixels)
