"""SAM's ViT encoder (Kirillov et al. 2023; Li et al. 2022, ViTDet) without the full score matrix.

Weights and mathematics are those of segment-anything's `ImageEncoderViT`. Differences: the position bias is added to
one block of scores at a time, or is part of queries and keys; the padding of windows is not projected; with bfloat16
the residuals and norms stay float32.
"""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sesam.sam.segment_anything_parts import Block, EncoderAttention, ImageEncoderViT

# scores computed at once: on a CPU as many as its cache holds, on a GPU half a gigabyte
MAX_SCORES_PER_CALL = {"cpu": 1 << 22, "cuda": 1 << 27}
# attention kernels by preference: cuDNN's is the fastest on an H100; other GPUs limit it to 128 channels
FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Compiled:
    """A function compiled by torch.compile, or the function itself where that fails."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.compiled = function, torch.compile(function, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is not self.function:
            from torch._dynamo.exc import TorchDynamoException  # takes seconds to import; only a GPU needs it

            try:
                return self.compiled(*arguments)
            except TorchDynamoException as problem:
                reason = str(problem).splitlines()[0]
                print(f"SAM's encoder runs uncompiled: torch.compile failed with {reason!r}", flush=True)
            self.compiled = self.function
        return self.function(*arguments)


class ViTEncoder(nn.Module):
    """The encoder `vit`, modified in place: (B, 3, S, S) float32 to (B, C, S/16, S/16) float32."""

    def __init__(
        self, vit: ImageEncoderViT, dtype: torch.dtype = torch.float32, folded: bool = False, compiled: bool = False
    ) -> None:
        """`dtype`: of the matrix products. `folded`: with FoldedBiasAttention. `compiled`: each kind of block, once."""
        super().__init__()
        self.vit, self.dtype = vit, dtype
        attention = FoldedBiasAttention if folded else BlockwiseAttention
        self.attentions = nn.ModuleList(attention(block.attn) for block in vit.blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.to(dtype)
        self.side = max(block.window_size for block in vit.blocks)
        if self.side:
            to_windows, from_windows = window_index(vit.pos_embed.shape[1], self.side)
            self.to_windows = nn.Buffer(to_windows, persistent=False)
            self.from_windows = nn.Buffer(from_windows, persistent=False)
        self.step = Compiled(self.transform) if compiled else self.transform

    def forward(self, images: Tensor) -> Tensor:
        return self.with_blocks(images, ())[0]

    def with_blocks(self, images: Tensor, numbers: Collection[int]) -> list[Tensor]:
        """The embeddings, then what the blocks of these numbers return, (B, S/16, S/16, D) float32."""
        embed = self.vit.patch_embed.proj  # a convolution of patches that do not overlap: a matrix product
        side = embed.kernel_size[0]
        patches = images.to(self.dtype).unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3)
        grid = patches.shape[1:3]
        x = self.vit.pos_embed.flatten(1, 2).repeat(len(images), 1, 1)
        update = F.linear(patches.flatten(1, 2), embed.weight.flatten(1), embed.bias)
        kept = []
        for k, (block, attention) in enumerate(zip(self.vit.blocks, self.attentions, strict=True)):
            x, update = self.step(block, attention, x, update)
            if k in numbers:
                kept.append((x + update).unflatten(1, grid))
        narrow, norm, smooth, last_norm = self.vit.neck
        x = norm(narrow((x + update).unflatten(1, grid).permute(0, 3, 1, 2).to(self.dtype)).float())
        return [last_norm(smooth(x.to(self.dtype)).float()), *kept]

    def transform(self, block: Block, attention: Any, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
        """One block: tokens x + update to the next x and update; (B, h*w, C), x float32, update of `dtype`.

        The block's last sum is left to the next block, because it compiles into one kernel with that block's norm.
        """
        x = x + update
        normed = block.norm1(x).to(self.dtype)
        if block.window_size:
            # an extra row of zeros is the padding of every window
            windows = attention.project(F.pad(normed, (0, 0, 0, 1)))[:, self.to_windows].flatten(0, 1)
            attended = attention(windows).reshape(len(x), -1, x.shape[-1])[:, self.from_windows]
        else:
            attended = attention(attention.project(normed))
        x = x + block.attn.proj(attended)
        return x, block.mlp(block.norm2(x).to(self.dtype))


class BlockwiseAttention(nn.Module):
    """The attention layer `attn` before its projection, the bias added to a block of scores at a time."""

    def __init__(self, attn: EncoderAttention) -> None:
        super().__init__()
        self.attn, self.project, self.side = attn, attn.qkv, (len(attn.rel_pos_h) + 1) // 2

    def forward(self, projected: Tensor) -> Tensor:
        """What `project` makes of tokens (B, side*side, C), row by row, to (B, side*side, C)."""
        q, k, v = projected.unflatten(-1, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        grid = q.unflatten(2, (self.side, self.side))
        offset = _offset(self.side, q.device)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, self.attn.rel_pos_h[offset].to(q.dtype))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, self.attn.rel_pos_w[offset].to(q.dtype))
        return attend_in_blocks(q, k, v, rel_h.flatten(2, 3), rel_w.flatten(2, 3)).transpose(1, 2).flatten(2)


class FoldedBiasAttention(nn.Module):
    """`BlockwiseAttention` for a GPU's fused attention in bfloat16: the bias is part of queries and keys.

    To a score q'k / sqrt(d) SAM adds a bias for the key's row and one for its column, both linear in q. Here these
    biases, times sqrt(d), are 2 * side more channels of the query, and the key is one-hot in its row and its column, so
    that the product includes them: with a separate bias, fused kernels are two to six times slower. The biases are
    projected from the token together with q, k and v, by one matrix product.
    """

    @torch.no_grad()
    def __init__(self, attn: EncoderAttention) -> None:
        super().__init__()
        weight, bias, device = attn.qkv.weight, attn.qkv.bias, attn.qkv.weight.device
        channels, self.heads, side = weight.shape[1], attn.num_heads, (len(attn.rel_pos_h) + 1) // 2
        self.width = channels // self.heads
        tables = self.width**0.5 * torch.cat([attn.rel_pos_h, attn.rel_pos_w])
        query = [x[:channels].unflatten(0, (self.heads, -1)) for x in (weight, bias)]
        rel_weight, rel_bias = (torch.einsum("td,nd...->nt...", tables, x).flatten(0, 1) for x in query)
        padding = -len(rel_weight) % 64  # to a multiple of 64: torch.compile copied the bias of 4,704 rows first
        self.splits = (channels, channels, channels, len(rel_weight), padding)
        self.project = nn.Linear(channels, sum(self.splits), device=device)
        self.project.weight.copy_(F.pad(torch.cat([weight, rel_weight]), (0, 0, 0, padding)))
        self.project.bias.copy_(F.pad(torch.cat([bias, rel_bias]), (0, padding)))
        offset, eye, token = _offset(side, device), torch.eye(side, device=device), torch.arange(side**2, device=device)
        row, column = token // side, token % side
        offset = torch.cat([offset[row], offset[column] + len(attn.rel_pos_h)], dim=1)[:, None]
        self.offset = nn.Buffer(offset, persistent=False)  # (tokens, 1, 2 * side), as the next
        self.one_hot = nn.Buffer(torch.cat([eye[row], eye[column]], dim=1)[:, None], persistent=False)

    def forward(self, projected: Tensor) -> Tensor:
        """As in BlockwiseAttention."""
        q, k, v, rel = (x.unflatten(-1, (self.heads, -1)) for x in projected.split(self.splits, dim=-1)[:4])
        shape = (*q.shape[:3], -1)
        q = torch.cat([q, rel.gather(-1, self.offset.expand(shape))], dim=-1)
        k = torch.cat([k, self.one_hot.to(k.dtype).expand(shape)], dim=-1)
        q, k = (F.pad(x, (0, -x.shape[-1] % 8)) for x in (q, k))  # fused kernels take multiples of 8
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(FUSED, set_priority=True):
            return F.scaled_dot_product_attention(q, k, v, scale=self.width**-0.5).transpose(1, 2).flatten(2)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v with SAM's decomposed position bias.

    q, k, v: (B, heads, N, d), N = h*w tokens row by row. rel_h: (B, heads, N, h) and rel_w: (B, heads, N, w): a query's
    bias for each key row and column. Returns (B, heads, N, d). At most MAX_SCORES_PER_CALL scores exist at once.
    """
    batch, heads, tokens, _ = q.shape
    max_scores = MAX_SCORES_PER_CALL[q.device.type]
    block_queries = max(1, min(tokens, max_scores // tokens))
    block_heads = max(1, min(heads, max_scores // tokens**2))
    block_batch = max(1, min(batch, max_scores // (heads * tokens**2)))
    k, v = k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    # one buffer for all blocks: fresh memory costs a page fault every 4 KiB
    buffer = q.new_empty(block_batch * block_heads * block_queries * tokens)
    starts = range(0, batch, block_batch), range(0, heads, block_heads), range(0, tokens, block_queries)
    with sdpa_kernel(FUSED[1:]) if q.is_cuda else nullcontext():  # cuDNN's kernel does not take every bias
        for b, n, i in product(*starts):
            block = slice(b, b + block_batch), slice(n, n + block_heads), slice(i, i + block_queries)
            rows, columns = rel_h[block][..., :, None], rel_w[block][..., None, :]
            shape = torch.broadcast_shapes(rows.shape, columns.shape)
            bias = torch.add(rows, columns, out=buffer[: prod(shape)].view(shape)).flatten(-2)
            out[block] = F.scaled_dot_product_attention(q[block], k[block[:2]], v[block[:2]], attn_mask=bias)
    return out


def window_index(grid: int, side: int) -> tuple[Tensor, Tensor]:
    """The tokens in each window, (windows, side*side) int64, `grid`**2 for padding; and the inverse, (grid**2,) int64.

    grid, side: tokens along each axis of the image and of a window.
    """
    windows = -(-grid // side)
    tokens = F.pad(torch.arange(grid * grid).view(grid, grid), (0, windows * side - grid) * 2, value=grid * grid)
    tokens = tokens.view(windows, side, windows, side).transpose(1, 2).reshape(-1, side * side)
    return tokens, tokens.flatten().argsort()[: grid * grid]


def _offset(size: int, device: torch.device) -> Tensor:
    """(size, size) int64: the row of a position table for a query and a key at these positions along its axis."""
    position = torch.arange(size, device=device)
    return position[:, None] - position + size - 1
