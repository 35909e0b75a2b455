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
    """A component's prompt, in pixels of the image: points, a box or a mask, and perhaps background points.

    Or a concept, and perhaps exemplars of it.
    """

    points: np.ndarray | None = None  # (n, 2) x, y
    box: np.ndarray | None = None  # (4,) x0, y0, x1, y1
    mask: str | None = None  # COCO's compressed run lengths, since an image may have hundreds of masks
    num_background_points: int = 0  # the last so many points are background, the others foreground
    concept: str | None = None
    exemplars: np.ndarray | None = None  # (n, 4) boxes

    @property
    def point_labels(self) -> np.ndarray:
        """As SAM takes them, (n,) int32: 1 foreground, 0 background."""
        count = 0 if self.points is None else len(self.points)
        return (np.arange(count) < count - self.num_background_points).astype(np.int32)

    @property
    def layout(self) -> tuple[int, bool, bool]:
        """Prompts that are decoded together have it in common."""
        return len(self.point_labels), self.box is not None, self.mask is not None


@dataclass(frozen=True)
class MaskPredictions:
    """A prompt's masks: three, or a concept's one."""

    counts: Sequence[np.ndarray]  # per mask its run lengths column by column, background first, int64
    predicted_iou: np.ndarray  # (masks,) float32


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
    ) -> list[list[MaskPredictions]]:
        """Per image with its embedding and its (height, width): the candidates of its prompts, in order."""
