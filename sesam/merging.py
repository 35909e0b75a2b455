"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco

from sesam.artifacts.component_records import Component, Selected
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.geometry.rle import rle_to_mask, to_coco_rle
from sesam.labels import IGNORE_INDEX


def merge_labels(
    weak: np.ndarray,
    confident: np.ndarray,
    components: Sequence[Component],
    selected: Sequence[Selected],
    weak_source: int = WEAK,
) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels and their sources, both (H, W) uint8.

    weak, confident: (H, W) uint8 weak labels and the teacher's confident predictions, 255 = none. weak_source: FINE
    where the weak labels are fine ones. Each pixel takes the
    class of the kept mask with the strongest claim, see `claim_strength`; then weak labels are restored, and pixels
    that are still empty take `confident`.
    """
    labels, sources = np.full_like(weak, IGNORE_INDEX), np.full_like(weak, NONE)
    strongest = np.full(weak.shape, -np.inf, np.float32)
    for component, chosen in zip(components, selected, strict=True):
        if chosen.kept:
            window, strength = claim_strength(component, chosen, weak.shape)
            wins = strength > strongest[window]
            strongest[window][wins] = strength[wins]
            labels[window][wins], sources[window][wins] = chosen.class_id, SAM
    labeled = weak != IGNORE_INDEX
    labels[labeled], sources[labeled] = weak[labeled], weak_source
    empty = (labels == IGNORE_INDEX) & (confident != IGNORE_INDEX)
    labels[empty], sources[empty] = confident[empty], CONFIDENT
    return labels, sources


def claim_strength(
    component: Component, selected: Selected, shape: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of an image of (height, width) `shape` around a kept mask and its component, and how strongly the mask
    claims each pixel there, (h, w) float32.

    score / √(1 + distance to the component in pixels); -inf outside the mask.
    """
    both = coco.merge([to_coco_rle(record.rle, shape) for record in (selected, component)])
    left, top, width, height = coco.toBbox(both).astype(int).tolist()
    window = np.s_[top : top + height, left : left + width]
    mask, prompted = (rle_to_mask(record.rle, shape)[window] for record in (selected, component))
    distance: np.ndarray = np.zeros(1)  # to a concept that no pixel of the image was known to show
    if prompted.any():
        distance = cv2.distanceTransform((~prompted).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return window, np.where(mask, np.float32(selected.score) / np.sqrt(1 + distance), -np.inf).astype(np.float32)
