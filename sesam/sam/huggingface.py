"""SAM 2.1, HQ-SAM and SAM 3's tracker from Hugging Face's transformers, an optional extra.

Its image processors and the encoders of SAM 2 and 3 compute, SAM 3's with less: see `simplify_sam3`. HQ-SAM is encoded,
and all prompts are decoded, as segment-anything's SAM. Weights are a local folder as published: `sam.checkpoint` is its
model.safetensors.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial, reduce
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sesam.errors import SesamError, limit_reached
from sesam.params import Runtime, SamParams
from sesam.sam.batched_sam import BatchedModel, has_fused_attention, vit_encoder
from sesam.sam.decoder import Attention, Decoder, DecoderParts, ImageMaps, Layer, by_token, pixels_to_rows
from sesam.sam.encoder import Compiled
from sesam.sam.segment_anything_parts import ImageEncoderViT


class Family(NamedTuple):
    """The classes in transformers of models of one architecture."""

    model: str
    encoder: str
    processor: str
    stretched: bool  # images are resized to a square; otherwise their longer side is resized, the shorter padded


FAMILIES = {  # by the start of sam.model
    "sam2": Family("Sam2Model", "Sam2VisionModel", "Sam2ImageProcessor", stretched=True),
    "sam_hq": Family("SamHQModel", "SamHQVisionEncoder", "SamImageProcessor", stretched=False),
    "sam3_tracker": Family("Sam3TrackerModel", "Sam3VisionModel", "Sam3ImageProcessor", stretched=True),
}


def preprocess(image: np.ndarray, processor: Any) -> Tensor:
    """An image (H, W, 3) uint8 RGB to the model's input, (3, S, S) float32."""
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


class HuggingFaceSam(BatchedModel):
    """A model of transformers. An embedding is all maps of an image that the decoder reads, flat, one after another.

    Those of SAM 2 and 3: two of more detail, and the encoder's last. Those of HQ-SAM: its high-quality features, which
    its decoder makes of two of the encoder's maps, and the encoder's last.
    """

    def __init__(
        self, model: Any, family: Family, device: torch.device, sam: SamParams, runtime: Runtime | None
    ) -> None:
        """sam.dtype is of the encoder's matrix products; the decoder is float32."""
        import transformers

        self.model, self.dtype = model.to(device).eval(), getattr(torch, sam.dtype)
        vision = model.config.vision_config
        side = getattr(vision, "image_size", None) or vision.backbone_config.image_size
        side = side if isinstance(side, int) else side[0]
        parts = decoder_parts(model)
        decoder = Decoder(parts) if family.stretched else HqDecoder(parts, model.mask_decoder)
        super().__init__(decoder, side, family.stretched, device, runtime)
        if not family.stretched:
            self.encoder = vit_encoder(hq_vit(model.vision_encoder), self.dtype, device, runtime)
            self.first_global: int = min(vision.global_attn_indexes)
            del model.vision_encoder
        else:
            if family is FAMILIES["sam3_tracker"]:
                simplify_sam3(model, self.dtype)
            self.embed = compiled(self.model.get_image_embeddings, self.dtype, device, runtime)
        square = {"height": side, "width": side}
        options = {"size": square} if family.stretched else {"size": {"longest_edge": side}, "pad_size": square}
        self.processor = getattr(transformers, family.processor)(**options)
        self.preprocess = partial(preprocess, processor=self.processor)
        channels, (rows, columns) = parts.tokens.shape[1], self.cells
        detailed = [(channels // 8, 4 * rows, 4 * columns)]
        detailed += [(channels // 4, 2 * rows, 2 * columns)] * family.stretched
        self.map_shapes = [*detailed, (channels, rows, columns)]

    def to_input(self, image: Tensor) -> Tensor:
        return image

    def encode_inputs(self, images: Tensor) -> Tensor:
        if isinstance(self.decoder, HqDecoder):
            last, intermediate = self.encoder.with_blocks(images, [self.first_global])
            maps = [self.decoder.features(last, intermediate), last]
        else:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                maps = self.embed(images)
        return torch.cat([x.flatten(1) for x in maps], dim=1)

    def to_maps(self, embeddings: Tensor) -> ImageMaps:
        flat = embeddings.split([prod(shape) for shape in self.map_shapes], dim=1)
        *details, last = (x.unflatten(1, shape) for x, shape in zip(flat, self.map_shapes, strict=True))
        if self.stretched:
            details = [by_token(details[1], 1), by_token(details[0], 2)]
        return ImageMaps(last, details)

    def encode_prompts(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if points is None and boxes is None and masks is not None and self.stretched:
            nowhere = torch.zeros(len(masks), 1, 2, device=masks.device)  # SAM 2 and 3 have no prompt without a point
            points = nowhere, torch.full((len(masks), 1), -1, device=masks.device)
        coords, labels = (None, None) if points is None else (x[None] for x in points)
        sparse, dense = self.model.prompt_encoder(coords, labels, None if boxes is None else boxes[None], masks)
        if sparse is None:
            sparse = dense.new_zeros(1, len(dense), 0, dense.shape[1])
        return sparse[0], dense


def simplify_sam3(model: Any, dtype: torch.dtype) -> None:
    """Let the encoder of SAM 3's tracker compute the same with less, in place."""
    decoder, levels = model.mask_decoder, model.vision_encoder.neck.fpn_layers
    for level, name in zip(levels, ("conv_s0", "conv_s1"), strict=False):  # of the detailed maps
        level.proj2 = composed(level.proj2, getattr(decoder, name))
        setattr(decoder, name, nn.Identity())
    if dtype == torch.float32:  # there are no complex numbers of two bfloat16
        for layer in model.vision_encoder.backbone.layers:
            layer.attention = RotaryAttention(layer.attention)


def composed(first: Any, then: Any) -> Any:
    """One convolution for two in a row, of which the second is 1x1."""
    both, kernel = deepcopy(first), then.weight.detach()[..., 0, 0]
    both.out_channels = then.out_channels
    both.weight = nn.Parameter(torch.einsum("oi,icyx->ocyx", kernel, first.weight.detach()))
    both.bias = nn.Parameter(kernel @ first.bias.detach() + then.bias.detach())
    return both


class RotaryAttention(nn.Module):
    """The attention layer `attn` of SAM 3's encoder, float32: pairs of channels are turned as complex numbers.

    One product in place, where transformers makes several tensors of the size of queries and keys.
    """

    def __init__(self, attn: Any) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any) -> tuple[Tensor, None]:
        """x: (B, h, w, D); position_embeddings: the angles' cosines and sines, (1, h·w, channels of a head)."""
        attn, (cos, sin) = self.attn, position_embeddings
        turn = torch.complex(cos[..., ::2].contiguous(), sin[..., ::2].contiguous()).unsqueeze(-2)

        def by_head(projection: nn.Linear) -> Tensor:
            return projection(x).view(len(x), -1, attn.num_attention_heads, attn.head_dim)

        def turned(projection: nn.Linear) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(by_head(projection).unflatten(3, (-1, 2))).mul_(turn))

        q, k = (turned(projection).flatten(3).transpose(1, 2) for projection in (attn.q_proj, attn.k_proj))
        out = F.scaled_dot_product_attention(q, k, by_head(attn.v_proj).transpose(1, 2), scale=attn.scaling)
        return attn.o_proj(out.transpose(1, 2).reshape(x.shape)), None


def compiled(
    function: Callable[..., Any], dtype: torch.dtype, device: torch.device, runtime: Runtime | None
) -> Callable[..., Any]:
    """An encoder's function, compiled where `runtime.compile` is set and the device gains by it."""
    return (
        Compiled(function)
        if runtime is not None and runtime.compile and has_fused_attention(dtype, device)
        else function
    )


def hq_vit(encoder: Any) -> ImageEncoderViT:
    """HQ-SAM's encoder, which is SAM's, as segment-anything's with the same tensors."""
    config = encoder.config
    with torch.device("meta"):
        vit = ImageEncoderViT(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_dim / config.hidden_size,
            out_chans=config.output_channels,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
            use_rel_pos=True,
            window_size=config.window_size,
            global_attn_indexes=tuple(config.global_attn_indexes),
        )
    names = {"patch_embed.projection.": "patch_embed.proj.", "neck.conv1.": "neck.0.", "neck.layer_norm1.": "neck.1."}
    names |= {"neck.conv2.": "neck.2.", "neck.layer_norm2.": "neck.3."}  # before those of the layers
    names |= {"layers.": "blocks.", ".layer_norm": ".norm"}
    state = encoder.state_dict()
    renamed = {reduce(lambda key, pair: key.replace(*pair), names.items(), key): state[key] for key in state}
    vit.load_state_dict(renamed, assign=True)
    return vit


class HqDecoder(Decoder):
    """HQ-SAM's (Ke et al. 2023): to each of the three masks it adds one that it predicts from detailed features.

    As in the authors' code. transformers 5.24 upscales the image's tokens as they were before the transformer, with
    rows and columns exchanged.
    """

    def __init__(self, parts: DecoderParts, decoder: Any) -> None:
        super().__init__(parts)
        self.decoder = decoder

    def features(self, last: Tensor, intermediate: Tensor) -> Tensor:
        """(B, C/8, 4h, 4w) of the encoder's last map (B, C, h, w) and its first of intermediate ones (B, h, w, D)."""
        hq = self.decoder
        of_last = hq.encoder_conv2(hq.activation(hq.encoder_norm(hq.encoder_conv1(last))))
        x = hq.compress_vit_norm(hq.compress_vit_conv1(intermediate.permute(0, 3, 1, 2)))
        return of_last + hq.compress_vit_conv2(hq.activation(x))

    def __call__(
        self, maps: ImageMaps, image: Tensor, sparse: Tensor, dense: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        logits, quality = super().__call__(maps, image, sparse, dense, grid)
        quality, order = quality.sort(dim=1, descending=True)  # as transformers does
        return logits.gather(1, order[..., None, None].expand_as(logits)), quality

    def masks(
        self, image_tokens: Tensor, states: Tensor, details: Sequence[Tensor], image: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        hq, (features,) = self.decoder, details
        # two convolutions of 3x3 see two pixels more than the grid: a token has four
        wider = min(grid[0] + 1, image_tokens.shape[1]), min(grid[1] + 1, image_tokens.shape[2])
        pixels = self.upscale(image_tokens[:, : wider[0], : wider[1]])
        masks = pixels_to_rows(pixels.flatten(1, -2) @ self.kernels(states), wider)
        x = pixels_to_rows(pixels.flatten(1, -2), wider)
        x = hq.activation(hq.mask_norm(hq.mask_conv1(x)))
        # the mask is the same product of kernel, convolution and features: with the kernel first it has one channel
        kernel = hq.hq_mask_mlp(states[:, self.parts.quality_token + 5])
        weight = torch.einsum("pc,cdyx->pdyx", kernel, hq.mask_conv2.weight)
        detailed = F.conv2d(x.flatten(0, 1)[None], weight, padding=1, groups=len(x))[0]
        height, width = (4 * n for n in grid)
        detailed = detailed[:, :height, :width] + (kernel @ hq.mask_conv2.bias)[:, None, None]
        features = features[:, :, :height, :width]
        found = [torch.einsum("c,chw->hw", k, features[i]) for k, i in zip(kernel, image.tolist(), strict=True)]
        return masks[:, :, :height, :width] + (detailed + torch.stack(found))[:, None]


def decoder_parts(model: Any) -> DecoderParts:
    """The parts of a model's decoder: HQ-SAM has one more token after the masks', SAM 2 and 3 one before all."""

    def attention(layer: Any) -> Attention:
        out = layer.out_proj if hasattr(layer, "out_proj") else layer.o_proj
        return Attention(layer.q_proj, layer.k_proj, layer.v_proj, out, layer.num_attention_heads)

    def attend_itself(q: Tensor, k: Tensor, v: Tensor, layer: Any) -> Tensor:
        return layer(q[None], k[None], v[None])[0][0]

    decoder, transformer = model.mask_decoder, model.mask_decoder.transformer
    layers = [
        Layer(
            partial(attend_itself, layer=x.self_attn),
            attention(x.cross_attn_token_to_image),
            attention(x.cross_attn_image_to_token),
            x.mlp,
            (x.layer_norm1, x.layer_norm2, x.layer_norm3, x.layer_norm4),
            x.skip_first_layer_pe,
        )
        for x in transformer.layers
    ]
    tokens = [decoder.iou_token, decoder.mask_tokens]
    is_hq = hasattr(decoder, "hq_token")
    tokens = [*tokens, decoder.hq_token] if is_hq else [decoder.obj_score_token, *tokens]
    return DecoderParts(
        torch.cat([token.weight for token in tokens]).detach(),
        0 if is_hq else 1,
        model.get_image_wide_positional_embeddings().detach(),
        layers,
        attention(transformer.final_attn_token_to_image),
        transformer.layer_norm_final_attn,
        decoder.upscale_conv1,
        decoder.upscale_layer_norm,
        decoder.upscale_conv2,
        decoder.activation,
        decoder.output_hypernetworks_mlps[1:],
        decoder.iou_prediction_head,
    )


def load_family(weights: Path, device: torch.device, sam: SamParams, runtime: Runtime | None) -> HuggingFaceSam:
    """The model in the folder of `weights`; SesamError if that is not a complete model of its family."""
    family = next(family for prefix, family in FAMILIES.items() if sam.model.startswith(prefix))

    def wrong(model: Any) -> str:
        config = model.config.vision_config
        if type(model.vision_encoder).__name__ != family.encoder:
            return "it has another encoder"
        if model.config.mask_decoder_config.num_multimask_outputs != 3:
            return "its decoder does not make three masks"
        if not family.stretched and not (
            config.use_rel_pos and config.use_abs_pos and config.qkv_bias and config.hidden_act == "gelu"
        ):
            return "its encoder is not SAM's"
        return ""

    return HuggingFaceSam(load_pretrained(weights, family.model, sam, wrong), family, device, sam, runtime)


def load_pretrained(weights: Path, class_name: str, sam: SamParams, wrong: Callable[[Any], str]) -> Any:
    """The model of a class of transformers in the folder of `weights`, float32; SesamError if it is not complete.

    wrong: what is wrong with a model, or "".
    """
    try:
        import transformers
    except ImportError:
        raise SesamError(
            f"sam.model {sam.model} needs transformers. Install it: pip install -c constraints.txt -e '.[transformers]'"
        ) from None
    if weights.name != "model.safetensors":  # the only file that transformers reads, whatever else is beside it
        raise SesamError(f"{weights} (sam.checkpoint) must be the model.safetensors of its folder.")
    try:
        if not weights.with_name("config.json").is_file():  # transformers builds a model of its default size
            raise ValueError("there is no config.json")
        model, report = getattr(transformers, class_name).from_pretrained(
            weights.parent, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        reason = wrong(model)
        if missing := len(report["missing_keys"]) + len(report["mismatched_keys"]):
            reason = f"{missing} of its tensors are missing or have another shape"
    except Exception as problem:  # of any kind, because the library parses the files
        if limit_reached(problem) is not None:
            raise
        reason = str(problem).partition("\n")[0] or type(problem).__name__
    if reason:
        raise SesamError(f"{weights.parent} does not hold {class_name} ({reason}). Check sam.checkpoint.")
    return model
