"""Initial weights of the bundled SAM, with which its masks depend on the prompt from the first step on."""

import torch
from segment_anything.modeling import Sam

from sesam.sam.bundled import WIDTH


@torch.no_grad()
def init_prompt_attention(sam: Sam) -> None:
    """Initialize a new `sam` so that the mask tokens already hold the image's content at the prompt.

    Half of the channels are for position: the image starts without content in them, and prompts attend to the image by
    them alone, with a kernel peaked at the prompt. The content there is copied to the other half. Self-attention starts
    as about a mean over the tokens, which brings the content to the mask tokens. Attention from the image to the
    prompts starts at zero, so that the full decoder starts as the shared one (`decoding`).
    """
    # SAM's position embedding is the sines of WIDTH / 2 random frequencies and then their cosines. Half of the
    # frequencies, the sine and cosine of each side by side, as attention heads take neighboring channels: their
    # products sum to cosines of the distance, which peak at 0
    sines = torch.arange(WIDTH // 4)
    position = torch.stack([sines, sines + WIDTH // 2], 1).flatten()
    content = torch.tensor([k for k in range(WIDTH) if k not in position.tolist()])
    identity = torch.eye(WIDTH)

    encoder, prompts, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    prompts.pe_layer.positional_encoding_gaussian_matrix.mul_(2.0)  # higher frequencies, a narrower peak
    # content starts small against position, or it would hide the position in the queries
    embeddings = [*prompts.point_embeddings, prompts.not_a_point_embed, prompts.no_mask_embed]
    for embedding in (*embeddings, decoder.iou_token, decoder.mask_tokens):
        embedding.weight.mul_(0.1)
    layers = decoder.transformer.layers
    for norm in (encoder.layers[-1], *(layer.norm4 for layer in layers)):
        norm.weight[position] = 0.0
    attentions = [layer.cross_attn_token_to_image for layer in layers]
    for attention in (*attentions, decoder.transformer.final_attn_token_to_image):
        attention.q_proj.weight.copy_(1.3 * identity[position])  # above 1: a sharper softmax
        attention.k_proj.weight.copy_(1.3 * identity[position])
        attention.v_proj.weight.copy_(identity[content])
        attention.out_proj.weight.copy_(identity[:, content])
    for layer in layers:
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(identity)
        layer.self_attn.out_proj.weight.copy_(identity)
        layer.cross_attn_image_to_token.out_proj.weight.zero_()
        layer.cross_attn_image_to_token.out_proj.bias.zero_()
    # logits of the size of 1, and a channel that can serve as the read-out's constant
    decoder.output_upscaling[-2].weight.mul_(4)
    decoder.output_upscaling[-2].bias[0] = 1.0
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(6)
