"""SAM's mask decoder for training: the full one, and one without attention from the image to the prompts.

Both have the same weights. Without that attention all prompts of an image share one image, which
is then attended to and up-sampled once, so a prompt costs a fraction of the full decoder's.
"""

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention


def predict_masks(
    sam: Sam, embeddings: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """MaskDecoder.predict_masks for prompts that each have their own image embedding.

    embeddings: (P, C, h, w) float, one per prompt. sparse: (P, T, C). dense: (P, C, h, w).
    Returns logits (P, 4, 4h, 4w), the single mask first and then the three candidates, and
    predicted IoU (P, 4). segment-anything's takes one image per call, and sesam/sam/decoder.py is for inference only.
    """
    decoder = sam.mask_decoder
    tokens = _tokens(sam, sparse)
    position = sam.prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)
    states, image = decoder.transformer(embeddings + dense, position, tokens)
    upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(embeddings.shape))
    logits = (_mask_kernels(sam, states) @ upscaled.flatten(2)).view(len(sparse), -1, *upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(states[:, 0])


def predict_masks_shared(
    sam: Sam, embeddings: torch.Tensor, sparse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`predict_masks` without attention from the image to the prompts; equal while that attention's output is zero.

    embeddings: (B, C, h, w) float. sparse: (B * P, T, C), ordered by image.
    Returns logits (B * P, 4, 4h, 4w), predicted IoU (B * P, 4) and the up-sampled image (B, C / 8, 4h, 4w).
    """
    decoder, images = sam.mask_decoder, len(embeddings)
    tokens = _tokens(sam, sparse)
    no_mask = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    keys = (embeddings + no_mask).flatten(2).transpose(1, 2)
    position = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)

    def attend_to_image(attention: Attention, queries: torch.Tensor) -> torch.Tensor:
        # the tokens of all prompts of an image as one sequence
        of_image = (queries + tokens).reshape(images, -1, queries.shape[-1])
        return attention(q=of_image, k=keys + position, v=keys).view_as(queries)

    # TwoWayTransformer.forward less `cross_attn_image_to_token`
    queries = tokens
    for layer in decoder.transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            queries = queries + layer.self_attn(q=queries + tokens, k=queries + tokens, v=queries)
        queries = layer.norm1(queries)
        queries = layer.norm2(queries + attend_to_image(layer.cross_attn_token_to_image, queries))
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(keys)
    attended = attend_to_image(decoder.transformer.final_attn_token_to_image, queries)
    queries = decoder.transformer.norm_final_attn(queries + attended)

    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(embeddings.shape))
    kernels = _mask_kernels(sam, queries).view(images, -1, upscaled.shape[1])
    logits = (kernels @ upscaled.flatten(2)).view(len(sparse), -1, *upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(queries[:, 0]), upscaled


def _tokens(sam: Sam, sparse: torch.Tensor) -> torch.Tensor:
    """The IoU token, the four mask tokens and the prompts' own (P, T, C): (P, 5 + T, C)."""
    output = torch.cat([sam.mask_decoder.iou_token.weight, sam.mask_decoder.mask_tokens.weight])
    return torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)


def _mask_kernels(sam: Sam, states: torch.Tensor) -> torch.Tensor:
    """The kernels (P, 4, C / 8) that read masks from the up-sampled image, from the tokens' states (P, T, C)."""
    mlps = sam.mask_decoder.output_hypernetworks_mlps
    return torch.stack([mlp(states[:, 1 + k]) for k, mlp in enumerate(mlps)], dim=1)
