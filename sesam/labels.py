"""The values of a label map."""

import numpy as np

IGNORE_INDEX = 255  # no class


def confident_labels(predicted: np.ndarray, confidence: np.ndarray, threshold: float) -> np.ndarray:
    """The predicted classes where confidence is at least γ in [0, 1], else 255; (H, W) uint8.

    predicted: (H, W) uint8. confidence: 255 times the softmax maximum, rounded down, (H, W) uint8.
    """
    return np.where(confidence >= 255 * threshold, predicted, np.uint8(IGNORE_INDEX))
