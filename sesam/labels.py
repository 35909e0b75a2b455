"""The values of a label map."""

from collections.abc import Iterable

import numpy as np

IGNORE_INDEX = 255  # no class


def count_values(values: np.ndarray) -> np.ndarray:
    """How often each value from 0 to 255 occurs in a label (H, W) uint8, (256,) int64.

    By runs of equal values, which labels have few of: a fifth of the time of counting pixels.
    """
    flat = values.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
    return np.bincount(flat[ends], np.diff(ends, prepend=-1), 256).astype(np.int64)


def confident_labels(predicted: np.ndarray, confidence: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """The predicted classes where confidence is at least γ in [0, 1], else 255; (H, W) uint8.

    predicted: (H, W) uint8. confidence: 255 times the softmax maximum, rounded down, (H, W) uint8. threshold: γ, or one
    for each class, (K,).
    """
    if isinstance(threshold, np.ndarray):
        threshold = np.append(threshold, 1)[np.minimum(predicted, len(threshold))]
    return np.where(confidence >= 255 * threshold, predicted, np.uint8(IGNORE_INDEX))


def class_thresholds(counts: np.ndarray, threshold: float, fraction: float) -> np.ndarray:
    """γ of each class: at most `threshold`, and low enough for `fraction` of the pixels predicted as the class; (K,).

    With one γ for all, rare classes hardly pass, and a student unlearns them (CBST, Zou et al., ECCV 2018).
    counts: (K, 256) int, the pixels by predicted class and confidence.
    """
    at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # pixels of at least this confidence
    passed = (at_least >= fraction * counts.sum(axis=1, keepdims=True)).sum(axis=1) - 1  # the last that passes
    return np.minimum(threshold, passed / 256)  # 255 · passed / 256 is above passed - 1, whatever is rounded


def fill_boxes(label: np.ndarray, boxes: Iterable[tuple[int, tuple[int, int, int, int]]]) -> np.ndarray:
    """A weak label (H, W) uint8 whose unlabeled pixels take the class of the smallest box around them.

    boxes: class and x0, y0, x1, y1, the far edges exclusive. What a network learns from boxes without SAM is the naive
    baseline of Khoreva et al., CVPR 2017.
    """
    filled = np.full_like(label, IGNORE_INDEX)
    for k, (x0, y0, x1, y1) in sorted(boxes, key=lambda pair: -_area(*pair[1])):
        filled[y0:y1, x0:x1] = k
    return np.where(label == IGNORE_INDEX, filled, label)


def _area(x0: int, y0: int, x1: int, y1: int) -> int:
    return (x1 - x0) * (y1 - y0)
