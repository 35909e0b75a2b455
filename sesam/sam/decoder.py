"""SAM's mask decoder (Kirillov et al. 2023, appendix A) for the prompts of several images in one batch.

Weights and mathematics are those of segment-anything's `MaskDecoder`, and of transformers' for SAM 2, SAM 3 and HQ-SAM.
Differences: tokens stay rows of one matrix from end to end, the first layer's projections of an image are computed once
for all of its prompts, and only the part of the grid with image content is upscaled.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sesam.sam.segment_anything_parts import Sam

MASK_LOGIT = 8.0  # of a mask prompt inside the mask; its negative outside


def downsample_mask(mask: np.ndarray, resized: tuple[int, int], side: int, cells: tuple[int, int]) -> Tensor:
    """A mask (H, W) bool as a prompt encoder takes it, `cells` bool; one pixel sets its cell, so that thin parts stay.

    resized: (height, width) of the image in the model's input of `side` pixels; the rest is padding.
    """
    inside = [max(1, round(n * of / side)) for n, of in zip(resized, cells, strict=True)]
    small = F.adaptive_max_pool2d(torch.from_numpy(mask)[None].float(), inside)[0] > 0
    return F.pad(small, (0, cells[1] - inside[1], 0, cells[0] - inside[0]))


def mask_prompt(masks: Tensor) -> Tensor:
    """Masks (P, h, w) bool at the prompt encoder's mask size, as logits (P, 1, h, w) float32."""
    return (masks.float() * 2 - 1)[:, None] * MASK_LOGIT


class Attention(NamedTuple):
    """The projections of an attention layer, each (..., C) to (..., heads * d) or back."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear
    heads: int


class Layer(NamedTuple):
    """A block of the two-way transformer."""

    attend_itself: Callable[[Tensor, Tensor, Tensor], Tensor]  # of queries, keys and values (P, tokens, C)
    to_image: Attention
    to_tokens: Attention
    mlp: nn.Module
    norms: Sequence[nn.Module]  # four
    skips_position: bool


class DecoderParts(NamedTuple):
    """The modules of a decoder, whatever library they come from."""

    tokens: Tensor  # (T, C): the learned ones, before those of the prompt
    quality_token: int  # whose state predicts IoU; the next is the single mask's, then those of the three masks
    position: Tensor  # (1, C, h, w), of the image's tokens
    layers: Sequence[Layer]
    last: Attention
    last_norm: nn.Module
    upscale: nn.ConvTranspose2d
    upscale_norm: nn.LayerNorm  # of channels; segment-anything's LayerNorm2d has the same attributes
    upscale_again: nn.ConvTranspose2d
    activation: nn.Module  # after each
    kernels: Sequence[nn.Module]  # of the three masks: a token's state to the weights of the upscaled channels
    quality: nn.Module  # a token's state to the predicted IoU of all masks


def meta_parts(sam: Sam) -> DecoderParts:
    """The parts of segment-anything's decoder."""

    def attention(layer: Any) -> Attention:
        return Attention(layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.num_heads)

    decoder: Any = sam.mask_decoder
    transformer, (first, norm, activation, second, _) = decoder.transformer, decoder.output_upscaling
    layers = [
        Layer(
            x.self_attn,
            attention(x.cross_attn_token_to_image),
            attention(x.cross_attn_image_to_token),
            x.mlp,
            (x.norm1, x.norm2, x.norm3, x.norm4),
            x.skip_first_layer_pe,
        )
        for x in transformer.layers
    ]
    return DecoderParts(
        torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).detach(),
        0,
        sam.prompt_encoder.get_dense_pe(),
        layers,
        attention(transformer.final_attn_token_to_image),
        transformer.norm_final_attn,
        first,
        norm,
        second,
        activation,
        decoder.output_hypernetworks_mlps[1:],
        decoder.iou_prediction_head,
    )


class ImageMaps(NamedTuple):
    """What a decoder reads of I images, float32: embeddings (I, C, h, w), and of some models maps of more detail.

    Those of SAM 2 and 3 are added while masks are upscaled: (I, h, w, 2, 2, C/4) and (I, h, w, 2, 2, 2, 2, C/8), laid
    out by `by_token`.
    """

    embeddings: Tensor
    details: Sequence[Tensor] = ()


class Decoder:
    """A decoder in float32, on the device of its weights."""

    @torch.no_grad()
    def __init__(self, parts: DecoderParts) -> None:
        self.parts, self.position = parts, _rows(parts.position)[0]
        self.layers = [(x, self._projection(x.to_image, x.to_tokens)) for x in parts.layers]
        self.last = self._projection(parts.last)

    def __call__(
        self, maps: ImageMaps, image: Tensor, sparse: Tensor, dense: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Candidate masks as logits at a quarter of the model's resolution, and their predicted IoU.

        image: (P,) int64, each prompt's image. sparse: (P, T, C) and dense: (P, C, h, w), each prompt's embeddings;
        dense may be (1, C, h, w), the same for all. grid: rows and columns of the embedding to upscale. Returns
        (P, 3, 4 * rows, 4 * columns) and (P, 3), float32.
        """
        parts, embeddings = self.parts, maps.embeddings
        tokens = torch.cat([parts.tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        own_image = len(dense) == len(sparse) > 1  # mask prompts change the image's tokens
        keys = _rows((embeddings[image] if own_image else embeddings) + dense)
        owner = None if own_image else image

        queries = tokens
        for layer, (weight, offset) in self.layers:
            norm1, norm2, norm3, norm4 = layer.norms
            k, v, q = F.linear(keys, weight).add_(offset).chunk(3, dim=-1)
            if layer.skips_position:
                queries = norm1(layer.attend_itself(queries, queries, queries))
            else:
                positioned = queries + tokens
                queries = norm1(queries + layer.attend_itself(positioned, positioned, queries))
            k, v, q = (expand_to_prompts(x, owner) for x in (k, v, q))
            queries = norm2(queries + _attend(layer.to_image, layer.to_image.q(queries + tokens), k, v))
            queries = norm3(queries + layer.mlp(queries))
            to_tokens = layer.to_tokens
            update = _attend_few(to_tokens, q, to_tokens.k(queries + tokens), to_tokens.v(queries))
            keys = norm4(update.add_(expand_to_prompts(keys, owner)))
            owner = None
        weight, offset = self.last
        k, v = F.linear(keys, weight).add_(offset).chunk(2, dim=-1)
        queries = parts.last_norm(queries + _attend(parts.last, parts.last.q(queries + tokens), k, v))

        image_tokens = keys.unflatten(1, embeddings.shape[2:])
        quality = parts.quality(queries[:, parts.quality_token])[:, 1:]
        return self.masks(image_tokens, queries, maps.details, image, grid), quality

    def masks(
        self, image_tokens: Tensor, states: Tensor, details: Sequence[Tensor], image: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Logits (P, 3, 4 * rows, 4 * columns) of image tokens (P, h, w, C) and the tokens' states (P, tokens, C)."""
        rows, columns = grid
        cut = [x[:, :rows, :columns] for x in details]
        pixels = self.upscale(image_tokens[:, :rows, :columns], [x if len(x) == 1 else x[image] for x in cut])
        return pixels_to_rows(pixels.flatten(1, -2) @ self.kernels(states), grid)

    def upscale(self, image_tokens: Tensor, details: Sequence[Tensor] = ()) -> Tensor:
        """Image tokens (P, h, w, C) to their pixels (P, h, w, 2, 2, 2, 2, C/8); details: of each prompt's image."""
        parts, norm = self.parts, self.parts.upscale_norm
        x = upsample2x(parts.upscale, image_tokens)
        if details:
            x += details[0]
        x = parts.activation(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
        x = upsample2x(parts.upscale_again, x)
        if details:
            x += details[1]
        return parts.activation(x)

    def kernels(self, states: Tensor) -> Tensor:
        """The weights of the upscaled channels in the three masks, (P, C/8, 3)."""
        first = self.parts.quality_token + 2
        return torch.stack([mlp(states[:, first + k]) for k, mlp in enumerate(self.parts.kernels)], dim=-1)

    def _projection(self, to_image: Attention, to_tokens: Attention | None = None) -> tuple[Tensor, Tensor]:
        """The attention layers' projections of the image's tokens as one matrix, and its offset at each position.

        `to_image` takes keys (with the position embedding) and values, `to_tokens` queries (with it).
        """
        layers = [(to_image.k, True), (to_image.v, False)]
        layers += [(to_tokens.q, True)] if to_tokens else []
        offset = [F.linear(self.position * has_position, x.weight, x.bias) for x, has_position in layers]
        return torch.cat([x.weight for x, _ in layers]), torch.cat(offset, dim=-1)


def upsample2x(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution with stride and kernel 2: (..., C) to (..., 2, 2, D), one matrix product."""
    y = x @ layer.weight.permute(0, 2, 3, 1).flatten(1)
    return y.unflatten(-1, (2, 2, -1)).add_(layer.bias)


def by_token(x: Tensor, times: int) -> Tensor:
    """A map (I, C, H, W) as `upsample2x` leaves pixels after so many `times`: (I, h, w, 2, 2, C) after one."""
    twos = (2,) * times
    x = x.unflatten(3, (-1, *twos)).unflatten(2, (-1, *twos))  # (I, C, h, 2, 2, w, 2, 2) of two times
    pairs = [axis for k in range(times + 1) for axis in (2 + k, 3 + times + k)]
    return x.permute(0, *pairs, 1).contiguous()


def pixels_to_rows(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The pixels (P, rows * columns * 16, N) of tokens that were upscaled twice, to (P, N, 4 * rows, 4 * columns)."""
    rows, columns = grid
    x = x.view(len(x), rows, columns, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return x.reshape(len(x), -1, 4 * rows, 4 * columns)


def _attend(layer: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """An attention layer after its projections of q, k and v (P, tokens, heads * d)."""
    q, k, v = (_heads(layer, x) for x in (q, k, v))
    return layer.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _attend_few(layer: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`_attend` for many queries and few keys: queries are columns, so that every step runs along them."""
    q, k, v = (_heads(layer, x).mT for x in (q, k, v))
    scores = (k.mT @ q * q.shape[2] ** -0.5).softmax(dim=2)  # (P, heads, keys, queries)
    return layer.out((v @ scores).flatten(1, 2).mT)


def _heads(layer: Attention, x: Tensor) -> Tensor:
    """(P, tokens, heads * d) to (P, heads, tokens, d)."""
    return x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)


def expand_to_prompts(x: Tensor, owner: Tensor | None) -> Tensor:
    """The rows of x (I, ...) that belong to each prompt (P, ...); a single image's without a copy."""
    if owner is None:
        return x
    return x.expand(len(owner), -1, -1) if len(x) == 1 else x[owner]


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) to tokens (B, h*w, C)."""
    return x.flatten(2).transpose(1, 2).contiguous()
