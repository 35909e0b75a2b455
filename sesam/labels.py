"""The values of a label map."""

from __future__ import annotations

import numpy as np

IGNORE_INDEX = 255  # also: no class, in a fine label


def confident_labels(predicted: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """The predicted classes where confidence reaches γ in [0, 1], else 255; all (H, W) uint8.

    confidence: 255 times the softmax maximum, rounded down.
    """
    return np.where(confidence >= 255 * threshold, predicted, np.uint8(IGNORE_INDEX))
