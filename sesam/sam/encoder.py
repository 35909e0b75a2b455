"""SAM's ViT encoder (Kirillov et al. 2023; Li et al. 2022, ViTDet) without the full score matrix.

Weights and mathematics are those of segment-anything's `ImageEncoderViT`. What differs: the position bias is added to
one block of scores at a time, or is part of queries and keys; the padding of the windows is not projected; and under
bfloat16 the residuals and the norms stay float32.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, Block, ImageEncoderViT
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# scores computed at once: on a CPU what its cache holds, on a GPU half a gigabyte
SCORES = {"cpu": 1 << 22, "cuda": 1 << 27}
# attention kernels by preference: cuDNN's is the fastest on an H100; on others it takes no more than 128 channels
FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class ViTEncoder(nn.Module):
    """The encoder `vit`, taken over: (B, 3, S, S) float32 to (B, C, S/16, S/16) float32."""

    into_windows: Tensor
    back: Tensor

    def __init__(self, vit: ImageEncoderViT, dtype: torch.dtype = torch.float32, folded: bool = False) -> None:
        """`dtype`: of the matrix products. `folded`: `FoldedBiasAttention`, else `BlockwiseAttention`."""
        super().__init__()
        self.vit = vit
        self.dtype = dtype
        self.attentions = nn.ModuleList(
            (FoldedBiasAttention if folded else BlockwiseAttention)(block.attn) for block in vit.blocks
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
        self.side = max(block.window_size for block in vit.blocks)
        if self.side:
            into, back = window_index(vit.pos_embed.shape[1], self.side)
            self.register_buffer("into_windows", into, persistent=False)
            self.register_buffer("back", back, persistent=False)
        self.step = self.transform

    def forward(self, images: Tensor) -> Tensor:
        embed = self.vit.patch_embed.proj  # of patches that do not overlap: a matrix product
        side = embed.kernel_size[0]
        patches = images.to(self.dtype).unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
        grid = patches.shape[1:3]
        x = self.vit.pos_embed.flatten(1, 2).repeat(len(images), 1, 1)
        update = F.linear(patches.flatten(1, 2), embed.weight.flatten(1), embed.bias)
        for block, attention in zip(self.vit.blocks, self.attentions, strict=True):
            x, update = self.step(block, attention, x, update)
        narrow, norm, smooth, last_norm = self.vit.neck
        x = norm(narrow((x + update).unflatten(1, grid).permute(0, 3, 1, 2).to(self.dtype)).float())
        return last_norm(smooth(x.to(self.dtype)).float())

    def transform(self, block: Block, attention: nn.Module, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """What a block makes of tokens x + update: the next x and update; (B, h*w, C), x float32, update of `dtype`.

        Its last sum is the next block's first, because it compiles into one kernel with that block's norm.
        """
        x = x + update
        normed = block.norm1(x).to(self.dtype)
        if block.window_size:
            # one more row, of zeros, stands for the padding of every window
            mixed = attention(F.pad(normed, (0, 0, 0, 1)), self.into_windows)
            mixed = mixed.reshape(len(x), -1, x.shape[-1])[:, self.back]
        else:
            mixed = attention(normed)
        x = x + block.attn.proj(mixed)
        return x, block.mlp(block.norm2(x).to(self.dtype))


class Compiled:
    """A ViTEncoder under torch.compile; as it is, with a line that says so, where that fails.

    Block by block: those with windows and those without are compiled once each, instead of all 32 of ViT-H.
    """

    def __init__(self, encoder: ViTEncoder) -> None:
        self.encoder = encoder
        self.compiled = encoder.step = torch.compile(encoder.transform, dynamic=False)

    def __call__(self, images: Tensor) -> Tensor:
        if self.encoder.step is self.compiled:
            from torch._dynamo.exc import TorchDynamoException  # takes seconds to import, and only a GPU needs it

            try:
                return self.encoder(images)
            except TorchDynamoException as problem:
                reason = str(problem).splitlines()[0]
            print(f"SAM's encoder runs uncompiled: torch.compile says {reason!r}", flush=True)
            self.encoder.step = self.encoder.transform
        return self.encoder(images)


class BlockwiseAttention(nn.Module):
    """What the heads of the attention layer `attn` say, the bias added to a block of scores at a time."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.attn, self.side = attn, (len(attn.rel_pos_h) + 1) // 2

    def forward(self, x: Tensor, windows: Tensor | None = None) -> Tensor:
        """Tokens (B, N, C) to (B, side*side, C), row by row.

        windows: (W, side*side) int64, which of an image's tokens stand in each of W windows; then (B*W, side*side, C).
        """
        qkv = self.attn.qkv(x)
        if windows is not None:
            qkv = qkv[:, windows].flatten(0, 1)
        q, k, v = qkv.unflatten(-1, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        places = q.unflatten(2, (self.side, self.side))
        apart = _apart(self.side, x.device)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", places, self.attn.rel_pos_h[apart].to(q.dtype))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", places, self.attn.rel_pos_w[apart].to(q.dtype))
        return attend_in_blocks(q, k, v, rel_h.flatten(2, 3), rel_w.flatten(2, 3)).transpose(1, 2).flatten(2)


class FoldedBiasAttention(nn.Module):
    """`BlockwiseAttention` for a GPU's fused attention in bfloat16: the bias is part of queries and keys.

    To a score q'k / sqrt(d) SAM adds what q says of the key's row and of its column, both linear in q. Here a query
    has these, times sqrt(d), as 2 * side more channels, and a key a one at its row's and at its column's, so that the
    scores need no bias, with which fused kernels are two to six times slower (docs/performance.md). What a query says
    is projected from its token, like q, k and v, and by the same matrix product.
    """

    apart: Tensor
    place: Tensor

    @torch.no_grad()
    def __init__(self, attn: Attention) -> None:
        super().__init__()
        weight, bias, device = attn.qkv.weight, attn.qkv.bias, attn.qkv.weight.device
        channels, self.heads, side = weight.shape[1], attn.num_heads, (len(attn.rel_pos_h) + 1) // 2
        self.width = channels // self.heads
        tables = self.width**0.5 * torch.cat([attn.rel_pos_h, attn.rel_pos_w])
        query = [x[:channels].unflatten(0, (self.heads, -1)) for x in (weight, bias)]
        said = [torch.einsum("td,nd...->nt...", tables, x).flatten(0, 1) for x in query]
        self.parts = (channels, channels, channels, len(said[0]), -len(said[0]) % 64)
        rows = sum(self.parts)  # a multiple of 64: of 4,704 rows, compiled, the bias was seen to be copied first
        self.project = nn.Linear(channels, rows, device=device)
        self.project.weight.copy_(F.pad(torch.cat([weight, said[0]]), (0, 0, 0, self.parts[-1])))
        self.project.bias.copy_(F.pad(torch.cat([bias, said[1]]), (0, self.parts[-1])))
        apart, one, place = _apart(side, device), torch.eye(side, device=device), torch.arange(side**2, device=device)
        row, column = place // side, place % side
        apart = torch.cat([apart[row], apart[column] + len(attn.rel_pos_h)], dim=1)
        self.register_buffer("apart", apart[:, None], persistent=False)  # (tokens, 1, 2 * side)
        self.register_buffer("place", torch.cat([one[row], one[column]], dim=1)[:, None], persistent=False)  # likewise

    def forward(self, x: Tensor, windows: Tensor | None = None) -> Tensor:
        """As Blockwise's."""
        projected = self.project(x)
        if windows is not None:
            projected = projected[:, windows].flatten(0, 1)
        q, k, v, said = (x.unflatten(-1, (self.heads, -1)) for x in projected.split(self.parts, dim=-1)[:4])
        shape = (*q.shape[:3], -1)
        q = torch.cat([q, said.gather(-1, self.apart.expand(shape))], dim=-1)
        k = torch.cat([k, self.place.to(k.dtype).expand(shape)], dim=-1)
        q, k = (F.pad(x, (0, -x.shape[-1] % 8)) for x in (q, k))  # fused kernels take multiples of 8
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(FUSED, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, scale=self.width**-0.5).transpose(1, 2).flatten(2)


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


def _apart(size: int, device: torch.device) -> Tensor:
    """(size, size) int64: which row of a position table is for a query and a key at these places along its axis."""
    place = torch.arange(size, device=device)
    return place[:, None] - place + size - 1
