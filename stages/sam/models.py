"""The SAM models that `sam.model` can name.

A model is anything that encodes images and decodes prompts (`Segmenter`); a new
one is one more entry of `MODELS`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from stages.common import labels
from stages.common.errors import SesamError
from stages.common.files import code_of, fingerprint, sha256
from stages.sam.decoder import mask_prompt, predict_masks
from stages.sam.embedded import build_embedded_sam

DECODED_TOGETHER = 64  # prompts; no param, for another number may round a mask's edge differently


@dataclass(frozen=True)
class Prompt:
    """One component's prompt, in pixels of the image; exactly one of the three is given.

    points: (n, 2) x, y, all foreground. box: (4,) x0, y0, x1, y1. mask: (H, W) bool.
    """

    points: np.ndarray | None = None
    box: np.ndarray | None = None
    mask: np.ndarray | None = None


class Segmenter(Protocol):
    """What the stages need of a SAM-like model."""

    def encode(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, 3) uint8 RGB of any size to its embedding, float16."""

    def decode(
        self, embedding: np.ndarray, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each prompt in order: candidate masks (3, H, W) bool and their predicted IoU (3,) float32."""


class SamSegmenter:
    """segment-anything's Sam, decoding the prompts of an image in batches."""

    def __init__(self, sam: Sam, device: torch.device) -> None:
        self.sam = sam.to(device).eval()
        self.device = device
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> np.ndarray:
        resized = torch.as_tensor(self.resize.apply_image(image)).permute(2, 0, 1)
        batch = self.sam.preprocess(resized.to(self.device))[None]
        # rounded here and not only in the cache, so that the cache changes nothing
        return self.sam.image_encoder(batch)[0].half().cpu().numpy()

    @torch.inference_mode()
    def decode(
        self, embedding: np.ndarray, size: tuple[int, int], prompts: Sequence[Prompt]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        features = torch.from_numpy(embedding).to(self.device, torch.float32)
        done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for group in _alike(prompts):
            for start in range(0, len(group), DECODED_TOGETHER):
                numbers = group[start : start + DECODED_TOGETHER]
                sparse, dense = self._encode_prompts([prompts[k] for k in numbers], size)
                logits, quality = predict_masks(self.sam, features.expand(len(numbers), -1, -1, -1), sparse, dense)
                done |= {k: (logits[i, 1:], quality[i, 1:]) for i, k in enumerate(numbers)}
        resized = self.resize.get_preprocess_shape(*size, self.resize.target_length)
        for k in range(len(prompts)):
            logits, quality = done.pop(k)
            # one prompt at a time: three masks of a large image are 25 MB, sixty prompts' would be 1.5 GB
            masks = self.sam.postprocess_masks(logits[None], resized, size)[0] > self.sam.mask_threshold
            yield masks.cpu().numpy(), quality.float().cpu().numpy()

    def _encode_prompts(self, prompts: Sequence[Prompt], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        points = boxes = masks = None
        if prompts[0].points is not None:
            spots = self.resize.apply_coords(np.stack([p.points for p in prompts]), size)
            spots = torch.as_tensor(spots, dtype=torch.float32, device=self.device)
            points = (spots, torch.ones(spots.shape[:2], dtype=torch.int, device=self.device))
        elif prompts[0].box is not None:
            corners = self.resize.apply_boxes(np.stack([p.box for p in prompts]), size)
            boxes = torch.as_tensor(corners, dtype=torch.float32, device=self.device)
        else:
            masks = mask_prompt(torch.stack([self._shrink(p.mask) for p in prompts])).to(self.device)
        return self.sam.prompt_encoder(points=points, boxes=boxes, masks=masks)

    def _shrink(self, mask: np.ndarray) -> torch.Tensor:
        """A mask (H, W) as the prompt encoder takes it: any pixel of a cell counts, so that thin parts stay."""
        side = self.resize.target_length
        height, width = self.sam.prompt_encoder.mask_input_size
        rows, columns = self.resize.get_preprocess_shape(*mask.shape, side)
        cells = (max(1, round(rows * height / side)), max(1, round(columns * width / side)))
        small = F.adaptive_max_pool2d(torch.from_numpy(mask)[None].float(), cells)[0] > 0
        return F.pad(small, (0, width - cells[1], 0, height - cells[0]))


def _alike(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The prompts' numbers grouped by the number of points, in order; one batch needs equal numbers."""
    groups: dict[int, list[int]] = {}
    for k, prompt in enumerate(prompts):
        groups.setdefault(0 if prompt.points is None else len(prompt.points), []).append(k)
    return list(groups.values())


def load_sam(build: Callable[[], Sam], checkpoint: Path, device: torch.device) -> SamSegmenter:
    """A Sam with the weights of a state dict; SesamError if they do not fit."""
    sam = build()
    try:
        sam.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise SesamError(
            f"{checkpoint} does not hold the weights of sam.model ({reason}). Check sam.checkpoint."
        ) from None
    return SamSegmenter(sam, device)


@dataclass(frozen=True)
class Model:
    """How to load a model; for a published one the SHA-256 that its checkpoint must have, and its address."""

    load: Callable[[Path, torch.device], Segmenter]
    sha256: str | None = None
    address: str | None = None


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
MODELS = {
    "embedded": Model(partial(load_sam, build_embedded_sam)),
    "vit_b": Model(
        partial(load_sam, sam_model_registry["vit_b"]),
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        _META + "sam_vit_b_01ec64.pth",
    ),
    "vit_l": Model(
        partial(load_sam, sam_model_registry["vit_l"]),
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        _META + "sam_vit_l_0b3195.pth",
    ),
    "vit_h": Model(
        partial(load_sam, sam_model_registry["vit_h"]),
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        _META + "sam_vit_h_4b8939.pth",
    ),
}


def check_checkpoint(name: str, checkpoint: Path) -> str:
    """The checkpoint's SHA-256; SesamError if it is missing or not the official file of an official model."""
    if name not in MODELS:
        raise SesamError(f"params.yaml: sam.model is {name!r}; known are {', '.join(MODELS)}.")
    model = MODELS[name]
    how = f"Fetch it with `python -m stages.sam.fetch {name}`." if model.address else "Restore it from git."
    if not checkpoint.is_file():
        raise SesamError(f"{checkpoint} (sam.checkpoint) is missing. {how}")
    digest = sha256(checkpoint)
    if model.sha256 and digest != model.sha256:
        raise SesamError(
            f"{checkpoint} is not the official {name} checkpoint: SHA-256 {digest}, not {model.sha256}. {how}"
        )
    return digest


def engine_fingerprint(name: str, checkpoint_sha256: str) -> str:
    """What an embedding or a mask depends on besides image and prompts: weights, and the code that runs them."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    return fingerprint(name, checkpoint_sha256, [sha256(file) for file in code], code_of(labels))
