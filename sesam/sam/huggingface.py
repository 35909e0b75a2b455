"""SAM 2.1, HQ-SAM and SAM 3's tracker from Hugging Face's transformers, an optional extra.

transformers computes, resizes images and upscales masks; this module adapts it to `SamModel`. Weights are a local
folder as published: `sam.checkpoint` is its model.safetensors.
"""

from collections.abc import Sequence
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_mask
from sesam.params import Runtime, SamParams
from sesam.sam.batched_sam import OomBatcher, make_batchers, map_groups
from sesam.sam.decoder import downsample_mask, mask_prompt
from sesam.sam.sam_model import MaskPredictions, Prompt
from sesam.sam.segment_anything_parts import ResizeLongestSide
from sesam.sam.upscaling import rows_to_counts


class Family(NamedTuple):
    """The classes in transformers of models of one architecture."""

    model: str
    encoder: str
    processor: str
    square: bool  # images are resized to a square; otherwise their longer side is resized, the shorter padded


FAMILIES = {  # by the start of sam.model
    "sam2": Family("Sam2Model", "Sam2VisionModel", "Sam2ImageProcessor", square=True),
    "sam_hq": Family("SamHQModel", "SamHQVisionEncoder", "SamImageProcessor", square=False),
    "sam3_tracker": Family("Sam3TrackerModel", "Sam3VisionModel", "Sam3ImageProcessor", square=True),
}


def preprocess(image: np.ndarray, processor: Any) -> Tensor:
    """An image (H, W, 3) uint8 RGB to the model's input, (3, S, S) float32."""
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


class HuggingFaceSam:
    """A model of transformers. An embedding is all maps of an image that the decoder reads, flat, one after another.

    sam.dtype is of the encoder's matrix products; the decoder is float32.
    """

    def __init__(
        self, model: Any, family: Family, device: torch.device, sam: SamParams, runtime: Runtime | None
    ) -> None:
        import transformers

        self.model, self.family, self.device = model.to(device).eval(), family, device
        self.dtype = getattr(torch, sam.dtype)
        vision = model.config.vision_config
        side = getattr(vision, "image_size", None) or vision.backbone_config.image_size
        self.side: int = side if isinstance(side, int) else side[0]
        square = {"height": self.side, "width": self.side}
        options = {"size": square} if family.square else {"size": {"longest_edge": self.side}, "pad_size": square}
        self.processor = getattr(transformers, family.processor)(**options)
        self.preprocess = partial(preprocess, processor=self.processor)
        self.map_shapes = _map_shapes(model)
        self.image_batcher, self.prompt_batcher = make_batchers(device, runtime)

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return self.image_batcher.map(self._encode, images)

    def _encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        # always full: another shape might round differently
        batch = [*images, *[torch.zeros_like(images[0])] * (self.image_batcher.batch_size - len(images))]
        pixels = torch.stack(batch).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            maps = self.model.get_image_embeddings(pixels)
        if isinstance(maps, tuple):  # HQ-SAM's decoder reads the last map and the first of the intermediate ones
            maps = [maps[0], maps[1][0]]
        return [torch.cat([x[k].flatten() for x in maps]).half().cpu() for k in range(len(images))]

    @torch.inference_mode()
    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[MaskPredictions]]:
        return [self._decode(*image) for image in zip(embeddings, sizes, prompts, strict=True)]

    def _decode(self, embedding: Tensor, size: tuple[int, int], prompts: Sequence[Prompt]) -> list[MaskPredictions]:
        flat = embedding.to(self.device, torch.float32).split([prod(shape) for shape in self.map_shapes])
        maps = [x.view(1, *shape) for x, shape in zip(flat, self.map_shapes, strict=True)]
        intermediate = {"image_embeddings": maps[0], "intermediate_embeddings": maps[1:]}
        features = {"image_embeddings": maps} if self.family.square else intermediate
        # the model takes one mask per image
        batcher = OomBatcher("prompts", 1) if any(prompt.mask for prompt in prompts) else self.prompt_batcher
        decode = partial(batcher.map, partial(self._predict, features, size))
        return map_groups(decode, prompts, [prompt.layout for prompt in prompts])

    def _predict(
        self, features: dict[str, Any], size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> list[MaskPredictions]:
        out = self.model(**features, **self._model_prompts(size, prompts), multimask_output=True)
        scaling = () if self.family.square else ([self._resized(size)],)
        (masks,) = self.processor.post_process_masks(out.pred_masks, [size], *scaling)
        counts = rows_to_counts(masks.view(-1, *size).transpose(1, 2).flatten(1))
        return [MaskPredictions(list(islice(counts, len(iou))), iou) for iou in out.iou_scores[0].float().cpu().numpy()]

    def _model_prompts(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The model's arguments for prompts of one layout, in pixels of its input."""
        rows, columns = self._resized(size)
        scale = np.array([columns / size[1], rows / size[0]])
        found: dict[str, Tensor] = {}
        if prompts[0].mask is not None:
            _, height, width = self.map_shapes[-1 if self.family.square else 0]
            mask = rle_to_mask(prompts[0].mask, size)
            small = downsample_mask(mask, (rows, columns), self.side, (4 * height, 4 * width))
            found["input_masks"] = mask_prompt(small[None])
        if prompts[0].points is not None:
            coords = [x.points * scale for x in prompts if x.points is not None]
            found["input_points"] = torch.as_tensor(np.stack(coords), dtype=torch.float32)[None]
            found["input_labels"] = torch.as_tensor(np.stack([x.point_labels for x in prompts]))[None]
        if prompts[0].box is not None:
            boxes = [x.box * np.tile(scale, 2) for x in prompts if x.box is not None]
            found["input_boxes"] = torch.as_tensor(np.stack(boxes), dtype=torch.float32)[None]
        return {name: value.to(self.device) for name, value in found.items()}

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image in the model's input, without the padding."""
        longest = ResizeLongestSide.get_preprocess_shape(*size, self.side)
        return (self.side, self.side) if self.family.square else longest


def _map_shapes(model: Any) -> list[tuple[int, ...]]:
    """The shapes of an image's maps that the decoder reads."""
    vision, decoder = model.config.vision_config, model.mask_decoder
    if not hasattr(decoder, "conv_s0"):
        grid = vision.image_size // vision.patch_size
        return [(vision.output_channels, grid, grid), (grid, grid, vision.hidden_size)]
    channels = (decoder.conv_s0.out_channels, decoder.conv_s1.out_channels, model.hidden_dim)
    return [(c, *size) for c, size in zip(channels, model.backbone_feature_sizes, strict=True)]


def load_family(weights: Path, device: torch.device, sam: SamParams, runtime: Runtime | None) -> HuggingFaceSam:
    """The model in the folder of `weights`; SesamError if that is not a complete model of its family."""
    try:
        import transformers
    except ImportError:
        raise SesamError(
            f"sam.model {sam.model} needs transformers. Install it: pip install -c constraints.txt -e '.[transformers]'"
        ) from None
    family = next(family for prefix, family in FAMILIES.items() if sam.model.startswith(prefix))
    if weights.name != "model.safetensors":  # the only file that transformers reads, whatever else is beside it
        raise SesamError(f"{weights} (sam.checkpoint) must be the model.safetensors of its folder.")
    try:
        model, report = getattr(transformers, family.model).from_pretrained(
            weights.parent, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        reason = "" if type(model.vision_encoder).__name__ == family.encoder else "it has another encoder"
        if missing := len(report["missing_keys"]) + len(report["mismatched_keys"]):
            reason = f"{missing} of its tensors are missing or have another shape"
    except Exception as problem:  # of any kind, because the library parses the files
        reason = str(problem).partition("\n")[0] or type(problem).__name__
    if reason:
        raise SesamError(f"{weights.parent} does not hold {family.model} ({reason}). Check sam.checkpoint.")
    return HuggingFaceSam(model, family, device, sam, runtime)
