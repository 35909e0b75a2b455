"""SAM for many images and prompts at once: what all models share, and segment-anything's Sam."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sesam.artifacts.archives import check_weights
from sesam.errors import SesamError, limit_reached
from sesam.geometry.rle import rle_to_mask
from sesam.params import Dtype, Runtime
from sesam.sam.decoder import Decoder, ImageMaps, downsample_mask, mask_prompt, meta_parts
from sesam.sam.encoder import ViTEncoder
from sesam.sam.sam_model import MaskPredictions, Preprocess, Prompt
from sesam.sam.segment_anything_parts import ImageEncoderViT, ResizeLongestSide, Sam
from sesam.sam.upscaling import Axis, iter_counts, make_axis

# decoded at once; not a param, because another number may round a mask's edge differently
PROMPTS_PER_CALL = {"cpu": 4, "cuda": 128}
Item = TypeVar("Item")
Result = TypeVar("Result")


def preprocess(image: np.ndarray, side: int) -> Tensor:
    """An image (H, W, 3) uint8 RGB of any size with its longer side at `side` pixels, as SamPredictor resizes it."""
    return torch.from_numpy(ResizeLongestSide(side).apply_image(image))


class ImagePrompt(NamedTuple):
    """A prompt of the image with the index `image`, which has `size` (height, width)."""

    image: int
    size: tuple[int, int]
    prompt: Prompt


class BatchedModel(ABC):
    """A `SamModel` that encodes images and decodes the prompts of many images in batches.

    A subclass adapts a library's model. decoder: in float32. side: pixels of the model's square input. cells: rows and
    columns of an embedding. stretched: images fill the square; otherwise their longer side does, and the rest is
    padded.
    """

    preprocess: Preprocess

    def __init__(
        self, decoder: Decoder, side: int, stretched: bool, device: torch.device, runtime: Runtime | None
    ) -> None:
        self.decoder, self.side, self.stretched, self.device = decoder, side, stretched, device
        self.cells: tuple[int, ...] = tuple(decoder.parts.position.shape[2:])
        self.image_batcher, self.prompt_batcher = make_batchers(device, runtime)

    @abstractmethod
    def to_input(self, image: Tensor) -> Tensor:
        """A preprocessed image on the device to the encoder's input, (3, side, side) float32."""

    @abstractmethod
    def encode_inputs(self, images: Tensor) -> Tensor:
        """Embeddings, (B, ...) float32, of (B, 3, side, side)."""

    @abstractmethod
    def to_maps(self, embeddings: Tensor) -> ImageMaps:
        """What the decoder reads of embeddings (I, ...), float32 on the device."""

    @abstractmethod
    def encode_prompts(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The prompts' sparse (P, T, C) and dense (P, C, h, w) embeddings; without masks dense may be (1, C, h, w).

        points: (P, n, 2) float32 in pixels of the model's input, and labels (P, n) int32. boxes: (P, 4). masks:
        logits (P, 1, 4h, 4w). At least one of them.
        """

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return self.image_batcher.map(self._encode, images)

    def _encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        batch = [self.to_input(image.to(self.device, non_blocking=True)) for image in images]
        embeddings = self.encode_inputs(self.image_batcher.full(batch))[: len(images)]
        return to_float16(embeddings)  # not only in the cache, so that the cache changes nothing

    @torch.inference_mode()
    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[MaskPredictions]]:
        with explain_full_gpu():
            maps = self.to_maps(torch.stack([x.to(self.device, torch.float32, non_blocking=True) for x in embeddings]))
        image_prompts = [ImagePrompt(k, sizes[k], prompt) for k in range(len(prompts)) for prompt in prompts[k]]
        decode = partial(self.prompt_batcher.map, partial(self._decode, maps))
        decoded = iter(map_groups(decode, image_prompts, [x.prompt.layout for x in image_prompts]))
        return [list(islice(decoded, len(of_image))) for of_image in prompts]

    def _decode(self, maps: ImageMaps, prompts: Sequence[ImagePrompt]) -> list[MaskPredictions]:
        logits, quality = self.logits(maps, prompts)
        counts: list[np.ndarray] = []
        sizes = [(size, len(list(same_size))) for size, same_size in groupby(x.size for x in prompts)]
        for (size, _), masks in zip(sizes, logits.split([n for _, n in sizes]), strict=True):
            counts += iter_counts(masks.flatten(0, 1), 0.0, *self._axes(size))
        iou = quality.cpu().numpy()
        return [MaskPredictions(counts[3 * k : 3 * k + 3], iou[k]) for k in range(len(prompts))]

    @torch.inference_mode()
    def logits(self, maps: ImageMaps, prompts: Sequence[ImagePrompt]) -> tuple[Tensor, Tensor]:
        """Decoder's output for prompts of one layout on the images of `maps`."""
        axes = [self._axes(size) for size in {x.size for x in prompts}]
        grid = (max(-(-rows.end // 4) for rows, _ in axes), max(-(-columns.end // 4) for _, columns in axes))
        image = torch.tensor([x.image for x in prompts], device=self.device)
        return self.decoder(maps, image, *self._encode_prompts(prompts), grid)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in the model's input of an image of `size`, without the padding."""
        if self.stretched:
            return self.side, self.side
        return ResizeLongestSide.get_preprocess_shape(*size, self.side)

    def _axes(self, size: tuple[int, int]) -> list[Axis]:
        """How masks are upscaled to an image of (height, width): rows and columns."""
        if self.stretched:  # at once; otherwise by way of the model's input, which is cut
            return [make_axis(4 * n, 4 * n, 4 * n, s, self.device) for n, s in zip(self.cells, size, strict=True)]
        axes = zip(self.cells, self.resized(size), size, strict=True)
        return [make_axis(4 * n, self.side, r, s, self.device) for n, r, s in axes]

    def _encode_prompts(self, prompts: Sequence[ImagePrompt]) -> tuple[Tensor, Tensor]:
        points, boxes, masks = None, None, None
        if prompts[0].prompt.points is not None:
            coords = np.stack([x.prompt.points * self._scale(x.size) for x in prompts])
            labels = torch.as_tensor(np.stack([x.prompt.point_labels for x in prompts]), device=self.device)
            points = torch.as_tensor(coords, dtype=torch.float32, device=self.device), labels
        if prompts[0].prompt.box is not None:
            corners = np.stack([x.prompt.box * np.tile(self._scale(x.size), 2) for x in prompts])
            boxes = torch.as_tensor(corners, dtype=torch.float32, device=self.device)
        if prompts[0].prompt.mask is not None:
            inside = torch.stack([self._downsample(rle_to_mask(x.prompt.mask or "", x.size)) for x in prompts])
            masks = mask_prompt(inside).to(self.device)
        return self.encode_prompts(points, boxes, masks)

    def _scale(self, size: tuple[int, int]) -> np.ndarray:
        """(2,): pixels of the model's input a pixel of the image, along x and y."""
        rows, columns = self.resized(size)
        return np.array([columns / size[1], rows / size[0]])

    def _downsample(self, mask: np.ndarray) -> Tensor:
        rows, columns = self.cells
        return downsample_mask(mask, self.resized(mask.shape), self.side, (4 * rows, 4 * columns))


class BatchedSam(BatchedModel):
    """segment-anything's Sam."""

    def __init__(self, sam: Sam, device: torch.device, dtype: Dtype = "float32", runtime: Runtime | None = None):
        """`dtype`: of the encoder's matrix products; the decoder is float32. `runtime`: batch size, compile."""
        self.sam, self.dtype = sam.to(device).eval(), getattr(torch, dtype)
        side = sam.image_encoder.img_size
        super().__init__(Decoder(meta_parts(sam)), side, False, device, runtime)
        self.encoder: Callable[[Tensor], Tensor] = sam.image_encoder
        self.autocast = self.dtype != torch.float32
        if isinstance(sam.image_encoder, ImageEncoderViT):
            self.autocast = False  # ViTEncoder keeps its norms and residuals in float32
            self.encoder = vit_encoder(sam.image_encoder, self.dtype, device, runtime)
        self.preprocess = partial(preprocess, side=side)

    def to_input(self, image: Tensor) -> Tensor:
        return self.sam.preprocess(image.permute(2, 0, 1))

    def encode_inputs(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.autocast):
            return self.encoder(images)

    def to_maps(self, embeddings: Tensor) -> ImageMaps:
        return ImageMaps(embeddings)

    def encode_prompts(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sparse, dense = self.sam.prompt_encoder(points, boxes, masks)
        return sparse, dense if masks is not None else dense[:1]  # without a mask prompt it is the same for all


def vit_encoder(vit: ImageEncoderViT, dtype: torch.dtype, device: torch.device, runtime: Runtime | None) -> ViTEncoder:
    """The fastest encoder that the device has for these weights."""
    fused = has_fused_attention(dtype, device)
    compiled = fused and runtime is not None and runtime.compile
    return ViTEncoder(vit, dtype, fused, compiled).to(device).eval()


def has_fused_attention(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a GPU has it in bfloat16, and this is the type; older ones have not."""
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return ampere and dtype == torch.bfloat16


def to_float16(embeddings: Tensor) -> list[Tensor]:
    """Embeddings (I, ...) as they are kept, on the CPU; SesamError if float16 cannot hold them."""
    kept = embeddings.half().cpu()
    if not kept.isfinite().all():
        raise SesamError(
            "SAM's embedding of an image has values that float16 cannot hold, so all masks would be empty. Check "
            "sam.checkpoint; with sam.dtype bfloat16 try float32."
        )
    return list(kept)


@contextmanager
def explain_full_gpu() -> Iterator[None]:
    """SesamError where the embeddings of a batch of images leave no memory; prompts have their OomBatcher."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise SesamError(
            "The GPU's memory does not hold what SAM's decoder reads of a batch of images. Lower "
            "runtime.encoder_batch_size."
        ) from None


class OomBatcher:
    """Computes items in batches of `batch_size`, halved for good when the GPU is out of memory. kind: of the items."""

    def __init__(self, kind: str, batch_size: int) -> None:
        self.kind, self.batch_size = kind, batch_size

    def map(self, compute: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """The results of `compute` on consecutive batches, in order; SesamError if a batch of one is too large."""
        results: list[Result] = []
        while len(results) < len(items):
            try:
                results += compute(items[len(results) : len(results) + self.batch_size])
                continue
            except RuntimeError as problem:
                reason = str(problem).partition("\n")[0]
                # where others use the GPU too, errors of the driver and of cuBLAS are not an OutOfMemoryError
                if "out of memory" not in reason and "ALLOC_FAILED" not in reason:
                    raise
            if self.batch_size == 1:
                raise SesamError(f"The GPU's memory does not hold one of the {self.kind} at a time ({reason}).")
            # out of the except block: the exception would keep the memory of the failed call
            self.batch_size //= 2
            torch.cuda.empty_cache()
            print(f"GPU out of memory: from here on {self.batch_size} {self.kind} at once", flush=True)
        return results

    def full(self, images: Sequence[Tensor]) -> Tensor:
        """A batch, filled up with zeros: another shape would be compiled again, and might round differently."""
        return torch.stack([*images, *[torch.zeros_like(images[0])] * (self.batch_size - len(images))])


def make_batchers(device: torch.device, runtime: Runtime | None) -> tuple[OomBatcher, OomBatcher]:
    """Of images for the encoder, one at a time on a CPU, and of prompts for the decoder."""
    images = runtime.encoder_batch_size if runtime and device.type == "cuda" else 1
    return OomBatcher("images", images), OomBatcher("prompts", PROMPTS_PER_CALL[device.type])


def map_groups(
    decode: Callable[[list[Item]], list[MaskPredictions]],
    items: Sequence[Item],
    layouts: Sequence[tuple[int, ...]],
) -> list[MaskPredictions]:
    """The candidates of prompts, in order, decoded in groups of one layout, as the decoder needs."""
    order = sorted(range(len(items)), key=layouts.__getitem__)
    groups = [[items[k] for k in group] for _, group in groupby(order, layouts.__getitem__)]
    decoded = [candidates for group in groups for candidates in decode(group)]
    return [decoded[k] for k in np.argsort(order)]


def load_meta_sam(build: Callable[[], Sam], checkpoint: Path) -> Sam:
    """A Sam with the weights of a state dict; SesamError if they do not fit."""
    sam = build()
    try:
        check_weights(checkpoint)
        sam.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except Exception as problem:  # of any kind, because PyTorch parses the file
        if limit_reached(problem) is not None:
            raise
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise SesamError(f"{checkpoint} does not hold sam.model's weights ({reason}). Check sam.checkpoint.") from None
    return sam
