"""Prompts of several images through SAM's mask decoder in one batch."""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam

MASK_LOGIT = 8.0  # what a mask prompt says inside the mask; minus that outside


def mask_prompt(masks: torch.Tensor) -> torch.Tensor:
    """Masks (P, h, w) bool at the prompt encoder's mask size, as logits (P, 1, h, w) float32."""
    return (masks.float() * 2 - 1)[:, None] * MASK_LOGIT


def predict_masks(
    sam: Sam, embeddings: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """MaskDecoder.predict_masks for prompts that each bring their own image embedding.

    embeddings: (P, C, h, w) float, one per prompt. sparse: (P, T, C). dense:
    (P, C, h, w). Returns logits (P, 4, 4h, 4w), the single mask first and then the
    three candidates, and predicted IoU (P, 4). segment-anything's own takes one
    image a call and repeats it.
    """
    decoder = sam.mask_decoder
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)
    position = sam.prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)
    states, image = decoder.transformer(embeddings + dense, position, tokens)
    image = image.transpose(1, 2).reshape(embeddings.shape)
    upscaled = decoder.output_upscaling(image)
    weights = torch.stack([mlp(states[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    logits = (weights @ upscaled.flatten(2)).view(len(sparse), -1, *upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(states[:, 0])
