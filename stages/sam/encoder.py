"""SAM's ViT encoder (Kirillov et al. 2023; Li et al. 2022, ViTDet) without the full score matrix.

Weights and mathematics are those of segment-anything's `ImageEncoderViT`. What differs: the
position bias is added to one block of scores at a time, the padding of the windows is not
projected, and under bfloat16 the residuals and the norms stay float32.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import FlexKernelOptions, flex_attention

# scores computed at once: on a CPU what its cache holds, on a GPU half a gigabyte
SCORES = {"cpu": 1 << 22, "cuda": 1 << 27}
Tiles = dict[tuple[torch.dtype, int], FlexKernelOptions]
# FlexAttention's tiles of an H100, by dtype and a head's channels. With the bias, PyTorch 2.12's own do not fit its
# registers (they spill up to 6 KB a thread) and for ViT-H in float32 not its shared memory; these do, by ptxas
H100_TILES: Tiles = {
    (torch.bfloat16, 64): {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 3},
    (torch.bfloat16, 80): {"BLOCK_M": 128, "BLOCK_N": 32, "num_warps": 8, "num_stages": 3},
    (torch.float32, 64): {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
    (torch.float32, 80): {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
}


class ViTEncoder(nn.Module):
    """The encoder `vit`, taken over: (B, 3, S, S) float32 to (B, C, S/16, S/16) float32."""

    into_windows: Tensor
    back: Tensor

    def __init__(self, vit: ImageEncoderViT, dtype: torch.dtype = torch.float32) -> None:
        """`dtype`: of the matrix products."""
        super().__init__()
        self.vit = vit
        self.dtype = dtype
        self.attend, self.step = attend_in_blocks, self.transform
        for layer in vit.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
        self.side = max(block.window_size for block in vit.blocks)
        if self.side:
            into, back = window_index(vit.pos_embed.shape[1], self.side)
            self.register_buffer("into_windows", into, persistent=False)
            self.register_buffer("back", back, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.vit.patch_embed(images.to(self.dtype)).float() + self.vit.pos_embed
        grid = x.shape[1:3]
        x = x.flatten(1, 2)
        for block in self.vit.blocks:
            x = self.step(block, x, grid)
        narrow, norm, smooth, last_norm = self.vit.neck
        x = norm(narrow(x.unflatten(1, grid).permute(0, 3, 1, 2).to(self.dtype)).float())
        return last_norm(smooth(x.to(self.dtype)).float())

    def transform(self, block: Block, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """What a block makes of tokens (B, h*w, C) float32 of a grid (h, w)."""
        x = x + self._mix(block, block.norm1(x).to(self.dtype), grid)
        return x + block.mlp(block.norm2(x).to(self.dtype))

    def _mix(self, block: Block, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """A block's attention over tokens (B, h*w, C), all windows in one batch."""
        if not block.window_size:
            return block.attn.proj(self._heads(block.attn, block.attn.qkv(x), grid))
        # one more row, of zeros, stands for the padding of every window
        qkv = block.attn.qkv(F.pad(x, (0, 0, 0, 1)))[:, self.into_windows]
        mixed = self._heads(block.attn, qkv.flatten(0, 1), (self.side, self.side))
        return block.attn.proj(mixed.view(len(x), -1, x.shape[-1])[:, self.back])

    def _heads(self, attn: Attention, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
        """Projections (B, h*w, 3C) to what the heads say (B, h*w, C)."""
        q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        places = q.unflatten(2, grid)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", places, _offsets(attn.rel_pos_h, grid[0]).to(q.dtype))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", places, _offsets(attn.rel_pos_w, grid[1]).to(q.dtype))
        return self.attend(q, k, v, rel_h.flatten(2, 3), rel_w.flatten(2, 3)).transpose(1, 2).flatten(2)


class Compiled:
    """A ViTEncoder under torch.compile; as it is, with a line that says so, where that fails.

    Block by block: those with windows and those without are compiled once each, instead of all 32 of ViT-H.
    """

    def __init__(self, encoder: ViTEncoder) -> None:
        self.encoder, self.compiled = encoder, True
        h100 = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
        encoder.attend = partial(attend_fused, tiles=H100_TILES if h100 else None)
        encoder.step = torch.compile(encoder.step, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        if self.compiled:
            from torch._dynamo.exc import TorchDynamoException  # takes seconds to import, and only a GPU needs it

            try:
                return self.encoder(images)
            except TorchDynamoException as problem:
                reason = str(problem).splitlines()[0]
            print(f"SAM's encoder runs uncompiled: torch.compile says {reason!r}", flush=True)
            self.compiled = False
            self.encoder.attend, self.encoder.step = attend_in_blocks, self.encoder.transform
        return self.encoder(images)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v with SAM's decomposed position bias.

    q, k, v: (B, heads, N, d), N = h*w tokens row by row. rel_h: (B, heads, N, h) and
    rel_w: (B, heads, N, w): what a query adds for a key's row and for its column.
    Returns (B, heads, N, d). At most SCORES of the B * heads * N * N scores exist at once.
    """
    batch, heads, tokens, _ = q.shape
    room = SCORES[q.device.type]
    queries = max(1, min(tokens, room // tokens))
    together = max(1, min(heads, room // tokens**2))
    images = max(1, min(batch, room // (heads * tokens**2)))
    k, v = k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    # one block's memory for all: fresh memory costs a page fault every 4 KiB
    block = q.new_empty(images * together * queries * tokens)
    # not cuDNN's, which does not take every bias
    known = sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if q.is_cuda else nullcontext()
    with known:
        for b, n, i in product(range(0, batch, images), range(0, heads, together), range(0, tokens, queries)):
            part = slice(b, b + images), slice(n, n + together), slice(i, i + queries)
            rows, columns = rel_h[part][..., :, None], rel_w[part][..., None, :]
            shape = torch.broadcast_shapes(rows.shape, columns.shape)
            bias = torch.add(rows, columns, out=block[: prod(shape)].view(shape)).flatten(-2)
            out[part] = F.scaled_dot_product_attention(q[part], k[part[:2]], v[part[:2]], attn_mask=bias)
    return out


def attend_fused(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, tiles: Tiles | None = None) -> Tensor:
    """`attend_in_blocks` by FlexAttention: one kernel under torch.compile on a GPU, else with the full score matrix.

    tiles: of the kernel, as H100_TILES; PyTorch's own where there are none.
    """
    width = rel_w.shape[-1]
    rel_h, rel_w = rel_h.contiguous(), rel_w.contiguous()

    def bias(score: Tensor, b: Tensor, n: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rel_h[b, n, query, key // width] + rel_w[b, n, query, key % width]

    return flex_attention(q, k, v, score_mod=bias, kernel_options=(tiles or {}).get((q.dtype, q.shape[-1])))


def window_index(grid: int, side: int) -> tuple[Tensor, Tensor]:
    """Which token stands where in the windows, and back.

    grid: tokens along each axis. side: a window's. Returns (windows, side*side) int64, the
    token's number row by row, grid*grid where a window reaches beyond the grid; and (grid*grid,)
    int64, each token's place among the windows' tokens.
    """
    windows = -(-grid // side)
    numbers = F.pad(torch.arange(grid * grid).view(grid, grid), (0, windows * side - grid) * 2, value=grid * grid)
    into = numbers.view(windows, side, windows, side).transpose(1, 2).reshape(-1, side * side)
    return into, into.flatten().argsort()[: grid * grid]


def _offsets(table: Tensor, size: int) -> Tensor:
    """The position embedding (size, size, d) of each query's place against each key's, along one axis."""
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place + size - 1]
