"""The interface of SAM-like models, and what goes in and out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Preprocess = Callable[[np.ndarray], Tensor]  # of an image (H, W, 3) uint8 RGB


@dataclass(frozen=True)
class Prompt:
    """A component's prompt, in pixels of the image; exactly one of the three is given."""

    points: np.ndarray | None = None  # (n, 2) x, y, all foreground
    box: np.ndarray | None = None  # (4,) x0, y0, x1, y1
    mask: str | None = None  # COCO's compressed run lengths, since an image may have hundreds of masks

    @property
    def num_points(self) -> int:
        return 0 if self.points is None else len(self.points)


@dataclass(frozen=True)
class Candidates:
    """A prompt's three masks."""

    counts: Sequence[np.ndarray]  # per mask its run lengths column by column, background first, int64
    iou: np.ndarray  # (3,) float32, the predicted IoU


class SamModel(Protocol):
    """A SAM-like model."""

    device: torch.device

    @property
    def preprocess(self) -> Preprocess:
        """Resizes an image for `encode`; called in other processes and threads."""

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Preprocessed images to embeddings: tensors of any shape, float16 on the CPU."""

    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[Candidates]]:
        """Per image with its embedding and its (height, width): the candidates of its prompts, in order."""
