"""SAM 2.1, HQ-SAM and SAM 3's tracker, of Hugging Face's transformers, an optional extra.

What they compute, and how images are resized and masks scaled back, is the library's; here it is put into the form
that the stages need. Weights are a local folder, as their maker ships it: `sam.checkpoint` is its model.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_mask
from sesam.params import Precision, Runtime, SamParams
from sesam.sam.batched_sam import PROMPTS_PER_CALL, group_by_num_points
from sesam.sam.decoder import downsample_mask, mask_prompt
from sesam.sam.oom_batching import OomBatcher
from sesam.sam.segmenter import Candidates, Prompt
from sesam.sam.upscaling import rows_to_counts


@dataclass(frozen=True)
class Family:
    """Models of one architecture, by their classes in transformers.

    square: images are resized to a square; otherwise by their longer side, and padded.
    """

    model: str
    encoder: str
    processor: str
    square: bool


FAMILIES = {
    "sam2": Family("Sam2Model", "Sam2VisionModel", "Sam2ImageProcessor", square=True),
    "sam_hq": Family("SamHQModel", "SamHQVisionEncoder", "SamImageProcessor", square=False),
    "sam3_tracker": Family("Sam3TrackerModel", "Sam3VisionModel", "Sam3ImageProcessor", square=True),
}


def preprocess(image: np.ndarray, processor: Any) -> Tensor:
    """An image (H, W, 3) uint8 RGB of any size as the model takes it, (3, S, S) float32."""
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


class HuggingFaceSegmenter:
    """A model of transformers. An image's embedding is all that its decoder reads, one map after the other."""

    def __init__(
        self,
        model: Any,
        family: Family,
        device: torch.device,
        precision: Precision = "float32",
        runtime: Runtime | None = None,
    ) -> None:
        """`precision`: of the encoder's matrix products; the decoder is float32."""
        import transformers

        self.model, self.family, self.device = model.to(device).eval(), family, device
        self.dtype = getattr(torch, precision)
        vision = model.config.vision_config
        side = getattr(vision, "image_size", None) or vision.backbone_config.image_size
        self.side: int = side if isinstance(side, int) else side[0]
        size = {"height": self.side, "width": self.side} if family.square else {"longest_edge": self.side}
        padded = {} if family.square else {"pad_size": {"height": self.side, "width": self.side}}
        self.processor = getattr(transformers, family.processor)(size=size, **padded)
        self.preprocess = partial(preprocess, processor=self.processor)
        self.shapes = _shapes(model)
        self.images = OomBatcher("images", runtime.encoder_batch_size if runtime and device.type == "cuda" else 1)
        self.prompts = OomBatcher("prompts", PROMPTS_PER_CALL[device.type])

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return self.images.map(self._encode, images)

    def _encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        # always full: another shape might round differently
        batch = [*images, *[torch.zeros_like(images[0])] * (self.images.number - len(images))]
        pixels = torch.stack(batch).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = self.model.get_image_embeddings(pixels)
        # HQ-SAM's decoder reads the first of the encoder's intermediate maps beside the last
        maps = [found[0], found[1][0]] if isinstance(found, tuple) else found
        return [torch.cat([one[k].flatten() for one in maps]).half().cpu() for k in range(len(images))]

    @torch.inference_mode()
    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[Candidates]]:
        return [self._decode(*one) if one[2] else [] for one in zip(embeddings, sizes, prompts, strict=True)]

    def _decode(self, embedding: Tensor, size: tuple[int, int], prompts: Sequence[Prompt]) -> list[Candidates]:
        flat, maps = embedding.to(self.device, torch.float32), []
        for shape in self.shapes:
            maps.append(flat[: prod(shape)].view(1, *shape))
            flat = flat[prod(shape) :]
        read: dict[str, Any] = {"image_embeddings": maps}
        if not self.family.square:
            read = {"image_embeddings": maps[0], "intermediate_embeddings": maps[1:]}
        found: dict[int, Candidates] = {}
        for group in group_by_num_points(prompts):
            work = partial(self._masks, read, size)
            if prompts[group[0]].mask is not None:  # of the whole image, so they come one by one
                done = [one for k in group for one in work([prompts[k]])]
            else:
                done = self.prompts.map(work, [prompts[k] for k in group])
            found |= dict(zip(group, done, strict=True))
        return [found[k] for k in range(len(prompts))]

    def _masks(self, read: dict[str, Any], size: tuple[int, int], prompts: Sequence[Prompt]) -> list[Candidates]:
        out = self.model(**read, **self._prompts(size, prompts), multimask_output=True)
        resized = [self._resized(size)]
        scaling = () if self.family.square else (resized,)
        (masks,) = self.processor.post_process_masks(out.pred_masks, [size], *scaling)
        iou = out.iou_scores[0].float().cpu().numpy()
        counts = rows_to_counts(masks.view(-1, *size).transpose(1, 2).flatten(1))
        return [Candidates(list(islice(counts, len(one))), one) for one in iou]

    def _prompts(self, size: tuple[int, int], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Prompts of one kind, with equal numbers of points, in pixels of the model's input."""
        rows, columns = self._resized(size)
        scale = np.array([columns / size[1], rows / size[0]])
        first = prompts[0]
        if first.mask is not None:
            _, height, width = self.shapes[-1 if self.family.square else 0]
            small = downsample_mask(rle_to_mask(first.mask, size), (rows, columns), self.side, (4 * height, 4 * width))
            return {"input_masks": mask_prompt(small[None]).to(self.device)}
        if first.points is not None:
            points = np.stack([one.points * scale for one in prompts if one.points is not None])
            return {"input_points": torch.as_tensor(points, dtype=torch.float32, device=self.device)[None]}
        boxes = np.stack([one.box * np.tile(scale, 2) for one in prompts if one.box is not None])
        return {"input_boxes": torch.as_tensor(boxes, dtype=torch.float32, device=self.device)[None]}

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image in the model's input, without the padding."""
        return (
            (self.side, self.side) if self.family.square else ResizeLongestSide.get_preprocess_shape(*size, self.side)
        )


def _shapes(model: Any) -> list[tuple[int, ...]]:
    """Of the maps that the decoder reads of an image."""
    vision, decoder = model.config.vision_config, model.mask_decoder
    if not hasattr(decoder, "conv_s0"):
        grid = vision.image_size // vision.patch_size
        return [(vision.output_channels, grid, grid), (grid, grid, vision.hidden_size)]
    channels = (decoder.conv_s0.out_channels, decoder.conv_s1.out_channels, model.hidden_dim)
    return [(c, *size) for c, size in zip(channels, model.backbone_feature_sizes, strict=True)]


def load_family(
    name: str, weights: Path | None, device: torch.device, sam: SamParams, runtime: Runtime | None
) -> HuggingFaceSegmenter:
    """The model in the folder of `weights`; SesamError if it is no whole one of its family."""
    try:
        import transformers
    except ImportError:
        raise SesamError(
            f"sam.model {sam.model} is one of transformers. Install it: pip install -c constraints.txt "
            "-e '.[transformers]'"
        ) from None
    assert weights is not None  # its entry needs them
    family = FAMILIES[name]
    if weights.name != "model.safetensors":  # the one that the library reads, whatever else lies beside it
        raise SesamError(f"{weights} (sam.checkpoint) must be the model.safetensors of its folder.")
    try:
        model, report = getattr(transformers, family.model).from_pretrained(
            weights.parent, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        missing = [*report["missing_keys"], *report["mismatched_keys"]]
    except Exception as problem:  # the library raises whatever its files lead to
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise SesamError(f"{weights.parent} does not hold {family.model} ({reason}). Check sam.checkpoint.") from None
    if missing or type(model.vision_encoder).__name__ != family.encoder:
        raise SesamError(
            f"{weights.parent} does not hold {family.model}"
            + (f": {len(missing)} of its tensors are not there or have another size" if missing else "")
            + ". Check sam.checkpoint."
        )
    return HuggingFaceSegmenter(model, family, device, sam.precision, runtime)
