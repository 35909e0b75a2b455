"""A SAM that never errs: its mask is the connected component of the fine label under most of the prompt.

Labels that a pipeline loses with it are lost by the pipeline's own rules.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from skimage.measure import label
from torch import Tensor

from sesam.demo.classes import CLASSES
from sesam.geometry.rle import mask_to_counts, rle_to_mask
from sesam.sam.batched_sam import preprocess as resize
from sesam.sam.sam_model import MaskPredictions, Prompt


class OracleSam:
    """A SamModel that knows the fine labels of some images.

    The first candidate is correct; the others are the whole image and nothing, with lower predicted IoU. Of a concept,
    a class of the demo, the only one is correct.
    """

    device = torch.device("cpu")
    preprocess = staticmethod(partial(resize, side=256))

    def __init__(self, known: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """known: images (H, W, 3) uint8 RGB, and their fine labels (H, W) uint8, 255 = none."""
        self.number = {self.preprocess(image).numpy().tobytes(): k for k, (image, _) in enumerate(known)}
        self.fine = [fine for _, fine in known]
        self.components = [label(fine, background=255, connectivity=2) for _, fine in known]

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [torch.tensor([self.number[image.numpy().tobytes()]]).half() for image in images]

    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[MaskPredictions]]:
        images = zip([int(embedding) for embedding in embeddings], prompts, strict=True)
        return [[self.candidates(k, prompt) for prompt in of_image] for k, of_image in images]

    def candidates(self, image: int, prompt: Prompt) -> MaskPredictions:
        ids = self.components[image]
        if prompt.concept is not None:
            found = self.fine[image] == list(CLASSES).index(prompt.concept)
            return MaskPredictions([mask_to_counts(found)], np.array([0.9], np.float32))
        if prompt.points is not None:
            touched = ids[tuple(prompt.points.T[::-1])]
        elif prompt.box is not None:
            left, top, right, bottom = prompt.box
            touched = ids[top:bottom, left:right].ravel()
        else:
            touched = ids[rle_to_mask(prompt.mask, ids.shape)]
        component = int(np.bincount(touched).argmax())
        everything = np.ones(ids.shape, bool)
        masks = ((ids == component) & (component > 0), everything, ~everything)
        return MaskPredictions([mask_to_counts(mask) for mask in masks], np.array([0.9, 0.6, 0.3], np.float32))
