"""SAM's mask decoder (Kirillov et al. 2023, appendix A) for the prompts of several images in one batch.

Weights and mathematics are those of segment-anything's `MaskDecoder`. Differences: tokens stay rows of one matrix from
end to end, the first layer's projections of an image are computed once for all of its prompts, and only the part of the
grid with image content is upscaled.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sesam.sam.segment_anything_parts import DecoderAttention, Sam

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


class Decoder:
    """`sam`'s decoder, in float32 on the device of its weights."""

    @torch.no_grad()
    def __init__(self, sam: Sam) -> None:
        self.decoder = decoder = sam.mask_decoder
        layers = decoder.transformer.layers
        self.output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        self.position = _rows(sam.prompt_encoder.get_dense_pe())[0]
        self.layers = [(x, self._projection(x.cross_attn_token_to_image, x.cross_attn_image_to_token)) for x in layers]
        self.last = self._projection(decoder.transformer.final_attn_token_to_image)

    def __call__(
        self, embeddings: Tensor, image: Tensor, sparse: Tensor, dense: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Candidate masks as logits at a quarter of the model's resolution, and their predicted IoU.

        embeddings: (I, C, h, w), one per image. image: (P,) int64, each prompt's image. sparse: (P, T, C) and
        dense: (P, C, h, w), each prompt's embeddings; dense may be (1, C, h, w), the same for all. grid: rows and
        columns of the embedding to upscale. Returns (P, 3, 4 * rows, 4 * columns) and (P, 3), float32.
        """
        tokens = torch.cat([self.output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        own_image = len(dense) == len(sparse) > 1  # mask prompts change the image's tokens
        keys = _rows((embeddings[image] if own_image else embeddings) + dense)
        owner = None if own_image else image

        queries = tokens
        for layer, (weight, offset) in self.layers:
            k, v, q = F.linear(keys, weight).add_(offset).chunk(3, dim=-1)
            if layer.skip_first_layer_pe:
                queries = layer.norm1(layer.self_attn(queries, queries, queries))
            else:
                positioned = queries + tokens
                queries = layer.norm1(queries + layer.self_attn(positioned, positioned, queries))
            k, v, q = (expand_to_prompts(x, owner) for x in (k, v, q))
            to_image, to_tokens = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            queries = layer.norm2(queries + _attend(to_image, to_image.q_proj(queries + tokens), k, v))
            queries = layer.norm3(queries + layer.mlp(queries))
            update = _attend_few(to_tokens, q, to_tokens.k_proj(queries + tokens), to_tokens.v_proj(queries))
            keys = layer.norm4(update.add_(expand_to_prompts(keys, owner)))
            owner = None
        weight, offset = self.last
        k, v = F.linear(keys, weight).add_(offset).chunk(2, dim=-1)
        transformer = self.decoder.transformer
        to_image = transformer.final_attn_token_to_image
        queries = transformer.norm_final_attn(queries + _attend(to_image, to_image.q_proj(queries + tokens), k, v))

        rows, columns = grid
        image_tokens = keys.unflatten(1, embeddings.shape[2:])[:, :rows, :columns]
        return self._masks(image_tokens, queries[:, 2:5]), self.decoder.iou_prediction_head(queries[:, 0])[:, 1:]

    def _masks(self, image: Tensor, states: Tensor) -> Tensor:
        """Image tokens (P, h, w, C) and the three mask tokens' states (P, 3, C) to logits (P, 3, 4h, 4w)."""
        first, norm, act, second, last_act = self.decoder.output_upscaling
        x = act(F.layer_norm(upsample2x(first, image), (first.out_channels,), norm.weight, norm.bias, norm.eps))
        x = last_act(upsample2x(second, x))
        kernels = [mlp(states[:, k]) for k, mlp in enumerate(self.decoder.output_hypernetworks_mlps[1:])]
        logits = x.flatten(1, -2) @ torch.stack(kernels, dim=-1)  # (P, h*w*2*2*2*2, 3)
        p, h, w, _ = image.shape
        return logits.view(p, h, w, 2, 2, 2, 2, 3).permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(p, 3, 4 * h, 4 * w)

    def _projection(
        self, to_image: DecoderAttention, to_tokens: DecoderAttention | None = None
    ) -> tuple[Tensor, Tensor]:
        """The attention layers' projections of the image's tokens as one matrix, and its offset at each position.

        `to_image` takes keys (with the position embedding) and values, `to_tokens` queries (with it).
        """
        layers = [(to_image.k_proj, True), (to_image.v_proj, False)]
        layers += [(to_tokens.q_proj, True)] if to_tokens else []
        offset = [F.linear(self.position * has_position, x.weight, x.bias) for x, has_position in layers]
        return torch.cat([x.weight for x, _ in layers]), torch.cat(offset, dim=-1)


def upsample2x(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution with stride and kernel 2: (..., C) to (..., 2, 2, D), one matrix product."""
    y = x @ layer.weight.permute(0, 2, 3, 1).flatten(1)
    return y.unflatten(-1, (2, 2, -1)).add_(layer.bias)


def _attend(layer: DecoderAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """segment-anything's Attention after its projections of q, k and v (P, tokens, heads * d)."""
    q, k, v = (_heads(layer, x) for x in (q, k, v))
    return layer.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _attend_few(layer: DecoderAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`_attend` for many queries and few keys: queries are columns, so that every step runs along them."""
    q, k, v = (_heads(layer, x).mT for x in (q, k, v))
    scores = (k.mT @ q * q.shape[2] ** -0.5).softmax(dim=2)  # (P, heads, keys, queries)
    return layer.out_proj((v @ scores).flatten(1, 2).mT)


def _heads(layer: DecoderAttention, x: Tensor) -> Tensor:
    """(P, tokens, heads * d) to (P, heads, tokens, d)."""
    return x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)


def expand_to_prompts(x: Tensor, owner: Tensor | None) -> Tensor:
    """The rows of x (I, ...) that belong to each prompt (P, ...); a single image's without a copy."""
    if owner is None:
        return x
    return x.expand(len(owner), -1, -1) if len(x) == 1 else x[owner]


def _rows(x: Tensor) -> Tensor:
    """(B, C, h, w) to tokens (B, h*w, C)."""
    return x.flatten(2).transpose(1, 2).contiguous()
