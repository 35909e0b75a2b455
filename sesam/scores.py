"""Scores from confusion matrices, which add up over images, so memory does not grow with their number."""

import numpy as np

from sesam.labels import IGNORE_INDEX

Scores = dict[str, float | None]


def confusion_matrix(actual: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixel counts, (K, K + 1) int64: actual class by predicted class, the last column unlabeled.

    actual, predicted: (H, W) uint8 class ids, 255 = unlabeled. Pixels whose actual label is 255 count nowhere.
    """
    counted = actual != IGNORE_INDEX
    rows, columns = actual[counted].astype(np.int64), np.minimum(predicted[counted], num_classes).astype(np.int64)
    cells = rows * (num_classes + 1) + columns
    return np.bincount(cells, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class, (K,) float64; an unlabeled pixel is a miss.

    matrix: (K, K + 1) pixel counts. NaN for a class that occurs in neither of the labels, as in mmsegmentation.
    """
    hits = matrix.diagonal()
    union = matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float | None:
    """Mean IoU over the classes that occur; None if none does."""
    iou = class_iou(matrix)
    return None if np.isnan(iou).all() else round(float(np.nanmean(iou)), 4)


def network_scores(matrix: np.ndarray) -> Scores:
    """mIoU, and pixel accuracy: the share of pixels given their class."""
    return {"mIoU": mean_iou(matrix), "pixel_accuracy": ratio(matrix.trace(), matrix.sum())}


def label_scores(matrix: np.ndarray) -> Scores:
    """Precision and recall, averaged over pixels as micro averages are, labeled share and mIoU of a label set.

    It may leave pixels unlabeled. None where the denominator is 0.
    """
    correct, labeled, total = matrix.trace(), matrix[:, :-1].sum(), matrix.sum()
    return {
        "precision": ratio(correct, labeled),
        "recall": ratio(correct, total),
        "f1": ratio(2 * correct, labeled + total),  # the harmonic mean of both
        "labeled": ratio(labeled, total),
        "mIoU": mean_iou(matrix),
    }


def class_scores(matrix: np.ndarray) -> list[Scores]:
    """Precision, recall, IoU and unlabeled share of each class of a label set; None where the denominator is 0."""
    return [
        {
            "precision": ratio(matrix[k, k], matrix[:, k].sum()),
            "recall": ratio(matrix[k, k], matrix[k].sum()),
            "IoU": iou,
            "unlabeled": ratio(matrix[k, -1], matrix[k].sum()),
        }
        for k, iou in enumerate(round_values(class_iou(matrix)))
    ]


def ratio(numerator: float, denominator: float) -> float | None:
    """Their ratio to four digits; None if the denominator is 0."""
    return round(float(numerator / denominator), 4) if denominator else None


def round_values(values: np.ndarray) -> list[float | None]:
    """Values to four digits; None for NaN, which JSON does not have."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
