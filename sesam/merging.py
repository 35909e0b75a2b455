"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.geometry.rle import largest_first, rle_to_mask
from sesam.labels import IGNORE_INDEX


def merge(weak: np.ndarray, filling: np.ndarray, selected: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels and their sources, both (H, W) uint8.

    weak: (H, W) uint8 class ids, 255 = unlabeled. filling: the same of the teacher's confident predictions.
    selected: the components as select_masks wrote them. Kept masks are painted in `largest_first`; then
    weak labels are restored, and pixels that are still empty take `filling`.
    """
    labels, sources = np.full_like(weak, IGNORE_INDEX), np.full_like(weak, NONE)
    kept = [component for component in selected if component["candidate"] is not None]
    for component in largest_first(kept, weak.shape):
        mask = rle_to_mask(component["rle"], weak.shape)
        labels[mask], sources[mask] = component["class"], SAM
    labeled = weak != IGNORE_INDEX
    labels[labeled], sources[labeled] = weak[labeled], WEAK
    empty = (labels == IGNORE_INDEX) & (filling != IGNORE_INDEX)
    labels[empty], sources[empty] = filling[empty], CONFIDENT
    return labels, sources
