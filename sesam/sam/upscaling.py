"""Mask logits to run lengths at the image's resolution, scaling up only where a mask has an edge.

segment-anything scales every logit to the model's input, crops the padding and scales to the image,
twice bilinear. Both are linear, so a tile of the image is two small matrix products; and where all
logits that a tile draws on have one sign, so has the tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 64  # pixels of the image along each axis
# pixels of masks that exist at once, whatever the image's size and the prompts' number
MAX_PIXELS = {"cpu": 1 << 22, "cuda": 1 << 28}


@dataclass(frozen=True)
class Axis:
    """How one axis of a mask is scaled up, tile by tile.

    start: (tiles,) int64, the first logit that a tile draws on. weight: (tiles, TILE, K)
    float32, what each of its pixels takes of the K logits from there. size: pixels.
    """

    start: Tensor
    weight: Tensor
    size: int

    @property
    def end(self) -> int:
        """One more than the last logit that any tile draws on."""
        return int(self.start.max()) + self.weight.shape[2]

    @property
    def reach(self) -> Tensor:
        """(tiles, K) int64: the logits that each tile draws on."""
        return self.start[:, None] + torch.arange(self.weight.shape[2], device=self.start.device)

    def matrix(self, logits: int) -> Tensor:
        """(size, logits) float32: all tiles at once."""
        whole = torch.zeros(*self.weight.shape[:2], logits, device=self.weight.device)
        places = self.reach[:, None].expand(-1, TILE, -1)
        return whole.scatter_(2, places, self.weight).flatten(0, 1)[: self.size]


@lru_cache(256)
def make_axis(logits: int, model: int, resized: int, size: int, device: torch.device) -> Axis:
    """The axis of an image with `size` pixels that was resized to `resized` of the `model` pixels of SAM's input.

    logits: the length of the whole axis of SAM's mask.
    """
    # the scaling itself, applied to each unit vector, is its matrix
    one = torch.eye(logits)[None, None]
    one = F.interpolate(one, (model, logits), mode="bilinear", align_corners=False)[:, :, :resized]
    matrix = F.interpolate(one, (size, logits), mode="bilinear", align_corners=False)[0, 0]
    tiles = -(-size // TILE)
    rows = F.pad(matrix, (0, 0, 0, tiles * TILE - size)).view(tiles, TILE, logits)
    used = (rows != 0).any(dim=1)
    first = used.int().argmax(dim=1)
    last = logits - 1 - used.flip(1).int().argmax(dim=1)
    reach = int((last - first).max()) + 1
    start = first.clamp(max=logits - reach)
    columns = start[:, None] + torch.arange(reach)
    weight = rows.gather(2, columns[:, None].expand(-1, TILE, -1))
    return Axis(start.to(device), weight.to(device), size)


def iter_counts(logits: Tensor, rows: Axis, columns: Axis, threshold: float) -> Iterator[np.ndarray]:
    """Of each mask, where logits (M, h, w) scaled up exceed the threshold, its run lengths.

    int64 pixels, column by column, outside first: COCO's uncompressed counts.
    """
    together = max(1, MAX_PIXELS[logits.device.type] // (rows.size * columns.size))
    for part in logits.split(together):
        yield from rows_to_counts(masks_by_columns(part, rows, columns, threshold).flatten(1))


def masks_by_columns(logits: Tensor, rows: Axis, columns: Axis, threshold: float) -> Tensor:
    """Logits (M, h, w) float32 to masks (M, W, H) bool: column by column, as COCO's run lengths go."""
    drawn = logits[:, rows.reach][..., columns.reach]  # (M, tiles down, K, tiles across, K)
    inside, touched = drawn.amin((2, 4)) > threshold, drawn.amax((2, 4)) > threshold
    masks = inside.transpose(1, 2)[:, :, None, :, None].repeat(1, 1, TILE, 1, TILE)
    m, i, j = (touched & ~inside).nonzero(as_tuple=True)
    for part in torch.arange(len(m), device=m.device).split(max(1, MAX_PIXELS[m.device.type] // TILE**2)):
        a, b, c = m[part], i[part], j[part]
        tiles = columns.weight[c] @ drawn[a, b, :, c].mT @ rows.weight[b].mT
        masks[a, c, :, b] = tiles > threshold
    return masks.flatten(3, 4).flatten(1, 2)[:, : columns.size, : rows.size]


def rows_to_counts(flat: Tensor) -> Iterator[np.ndarray]:
    """The run lengths of each row of (M, pixels) bool, the first of False."""
    pixels = flat.shape[1]
    flat = F.pad(flat, (1, -(pixels + 1) % 8))  # a False before the first; whole words of eight
    changed = F.pad(flat[:, 1 : pixels + 1] ^ flat[:, :pixels], (0, flat.shape[1] - pixels)).unflatten(1, (-1, 8))
    # few words hold a change: only those are looked at pixel by pixel
    mask, word = changed.view(torch.int64)[..., 0].nonzero(as_tuple=True)
    found, pixel = changed[mask, word].nonzero(as_tuple=True)
    mask, edge = mask[found].int().cpu().numpy(), (word[found] * 8 + pixel).int().cpu().numpy()
    limits = np.searchsorted(mask, np.arange(len(flat) + 1))
    for k in range(len(flat)):
        yield np.diff(edge[limits[k] : limits[k + 1]], prepend=0, append=pixels)
