"""segment-anything's Sam for many images at once."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import ImageEncoderViT
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn

from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_mask
from sesam.params import Precision, Runtime
from sesam.sam.decoder import Decoder, downsample_mask, mask_prompt
from sesam.sam.encoder import Compiled, ViTEncoder
from sesam.sam.oom_batching import OomBatcher
from sesam.sam.segmenter import Candidates, Prompt
from sesam.sam.upscaling import Axis, iter_counts, make_axis

PROMPTS_PER_CALL = {
    "cpu": 4,
    "cuda": 128,
}  # decoded at once; no param, for another number may round a mask's edge differently


def preprocess(image: np.ndarray, side: int) -> Tensor:
    """An image (H, W, 3) uint8 RGB of any size with its longer side at `side` pixels, as SamPredictor resizes it."""
    return torch.from_numpy(ResizeLongestSide(side).apply_image(image))


class SamSegmenter:
    """segment-anything's Sam: images and the prompts of several images in batches."""

    def __init__(
        self, sam: Sam, device: torch.device, precision: Precision = "float32", runtime: Runtime | None = None
    ):
        """`precision`: of the encoder's matrix products; the decoder is float32. `runtime`: for batch and compile."""
        dtype, encoder = getattr(torch, precision), sam.image_encoder
        self.sam = sam.to(device).eval()
        self.encoder: Callable[[Tensor], Tensor]
        if isinstance(encoder, ImageEncoderViT):
            # older ones have no fused attention in bfloat16
            ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
            fused = ampere and dtype == torch.bfloat16
            vit = ViTEncoder(encoder, dtype, fused).to(device).eval()
            self.encoder = Compiled(vit) if fused and runtime and runtime.compile else vit
        else:
            self.encoder = _Autocast(encoder, dtype).to(device).eval()
        self.device = device
        self.side = sam.image_encoder.img_size
        self.decoder = Decoder(sam)
        self.resize = ResizeLongestSide(self.side)
        self.preprocess = partial(preprocess, side=self.side)
        self.images = OomBatcher("images", runtime.encoder_batch_size if runtime and device.type == "cuda" else 1)
        self.prompts = OomBatcher("prompts", PROMPTS_PER_CALL[device.type])

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return self.images.map(self._encode, images)

    def _encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        batch = [self.sam.preprocess(image.to(self.device, non_blocking=True).permute(2, 0, 1)) for image in images]
        # always full: another shape would be compiled anew, and might round differently
        batch += [torch.zeros_like(batch[0])] * (self.images.number - len(batch))
        # rounded here and not only in the cache, so that the cache changes nothing
        return list(self.encoder(torch.stack(batch))[: len(images)].half().cpu())

    @torch.inference_mode()
    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[Candidates]]:
        if not any(prompts):
            return [[] for _ in prompts]
        features = torch.stack([x.to(self.device, torch.float32, non_blocking=True) for x in embeddings])
        jobs = [ImagePrompt(i, sizes[i], prompt) for i, several in enumerate(prompts) for prompt in several]
        found: dict[int, Candidates] = {}
        for group in group_by_num_points([job.prompt for job in jobs]):
            done = self.prompts.map(partial(self._decode, features), [jobs[k] for k in group])
            found |= dict(zip(group, done, strict=True))
        ordered = iter([found[k] for k in range(len(jobs))])
        return [[next(ordered) for _ in several] for several in prompts]

    def _decode(self, features: Tensor, jobs: Sequence[ImagePrompt]) -> list[Candidates]:
        logits, quality = self.logits(features, jobs)
        counts: list[np.ndarray] = []
        for size, same in groupby(range(len(jobs)), key=lambda k: jobs[k].size):
            part = list(same)
            masks = logits[part[0] : part[-1] + 1].flatten(0, 1)
            counts += iter_counts(masks, *self._axes(size), self.sam.mask_threshold)
        iou = quality.cpu().numpy()
        return [Candidates(counts[3 * k : 3 * k + 3], iou[k]) for k in range(len(jobs))]

    @torch.inference_mode()
    def logits(self, features: Tensor, jobs: Sequence[ImagePrompt]) -> tuple[Tensor, Tensor]:
        """What the decoder makes of prompts with equal numbers of points: see Decoder.

        features: (I, C, h, w) float32, the embeddings of the images that `jobs` count.
        """
        axes = [self._axes(size) for size in {job.size for job in jobs}]
        rows, columns = (max(-(-pair[k].end // 4) for pair in axes) for k in range(2))
        image = torch.tensor([job.image for job in jobs], device=self.device)
        return self.decoder(features, image, *self._encode_prompts(jobs), (rows, columns))

    def _axes(self, size: tuple[int, int]) -> tuple[Axis, Axis]:
        """How masks are scaled to an image of (height, width)."""
        resized = self.resize.get_preprocess_shape(*size, self.side)
        logits = [4 * n for n in self.sam.prompt_encoder.image_embedding_size]
        parts = zip(logits, resized, size, strict=True)
        rows, columns = (make_axis(n, self.side, r, s, self.device) for n, r, s in parts)
        return rows, columns

    def _encode_prompts(self, jobs: Sequence[ImagePrompt]) -> tuple[Tensor, Tensor]:
        prompts, encode = [job.prompt for job in jobs], self.sam.prompt_encoder
        if masks := [self._shrink(rle_to_mask(k.prompt.mask, k.size)) for k in jobs if k.prompt.mask is not None]:
            return encode(None, None, mask_prompt(torch.stack(masks)).to(self.device))
        if prompts[0].points is not None:
            pixels = np.stack([self.resize.apply_coords(job.prompt.points, job.size) for job in jobs])
            spots = torch.as_tensor(pixels, dtype=torch.float32, device=self.device)
            foreground = torch.ones(spots.shape[:2], dtype=torch.int, device=self.device)
            sparse, dense = encode((spots, foreground), None, None)
        else:
            corners = np.concatenate([self.resize.apply_boxes(job.prompt.box, job.size) for job in jobs])
            sparse, dense = encode(None, torch.as_tensor(corners, dtype=torch.float32, device=self.device), None)
        return sparse, dense[:1]  # without a mask prompt it says the same for all

    def _shrink(self, mask: np.ndarray) -> Tensor:
        resized = self.resize.get_preprocess_shape(*mask.shape, self.side)
        return downsample_mask(mask, resized, self.side, self.sam.prompt_encoder.mask_input_size)


class ImagePrompt(NamedTuple):
    """A prompt of the image with the number `image`, which has `size` (height, width)."""

    image: int
    size: tuple[int, int]
    prompt: Prompt


class _Autocast(nn.Module):
    """An encoder other than SAM's ViT, its convolutions and matrix products in `dtype`."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.encoder(images).float()


def group_by_num_points(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The prompts' numbers grouped by the number of points, in order; one batch needs equal numbers."""
    groups: dict[int, list[int]] = {}
    for k, prompt in enumerate(prompts):
        groups.setdefault(0 if prompt.points is None else len(prompt.points), []).append(k)
    return list(groups.values())


def load_sam(
    build: Callable[[], Sam],
    checkpoint: Path,
    device: torch.device,
    precision: Precision = "float32",
    runtime: Runtime | None = None,
) -> SamSegmenter:
    """A Sam with the weights of a state dict; SesamError if they do not fit. The rest as SamSegmenter's."""
    sam = build()
    try:
        sam.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise SesamError(
            f"{checkpoint} does not hold the weights of sam.model ({reason}). Check sam.checkpoint."
        ) from None
    return SamSegmenter(sam, device, precision, runtime)
