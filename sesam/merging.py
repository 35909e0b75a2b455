"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from sesam.artifacts.component_records import Selected
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.geometry.rle import rle_to_mask, to_coco_rle
from sesam.labels import IGNORE_INDEX


def merge(weak: np.ndarray, confident: np.ndarray, selected: Sequence[Selected]) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels and their sources, both (H, W) uint8.

    weak, confident: (H, W) uint8 weak labels and the teacher's confident predictions, 255 = none. Kept masks are
    painted largest first; then weak labels are restored, and pixels that are still empty take `confident`.
    """
    labels, sources = np.full_like(weak, IGNORE_INDEX), np.full_like(weak, NONE)
    for component in largest_first(selected, weak.shape):
        mask = rle_to_mask(component.rle, weak.shape)
        labels[mask], sources[mask] = component.class_id, SAM
    labeled = weak != IGNORE_INDEX
    labels[labeled], sources[labeled] = weak[labeled], WEAK
    empty = (labels == IGNORE_INDEX) & (confident != IGNORE_INDEX)
    labels[empty], sources[empty] = confident[empty], CONFIDENT
    return labels, sources


def largest_first(selected: Sequence[Selected], shape: tuple[int, int]) -> list[Selected]:
    """The kept masks by area: painted in this order, small objects end on top."""
    kept = [component for component in selected if component.kept]
    return sorted(kept, key=lambda component: -int(coco.area(to_coco_rle(component.rle, shape))))
