"""A network's confusion matrix over the validation images, and its scores."""

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sesam.artifacts.image_io import Palette, write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label
from sesam.errors import SesamError
from sesam.execution.batches import run_batches
from sesam.params import MAX_REPORT_IMAGES, EvaluationParams, Params
from sesam.regular_files import open_regular
from sesam.scores import class_iou, confusion_matrix, network_scores, round_values
from sesam.segmentation.inference import make_predict_steps


def evaluate_network(
    network: Path, manifest: Manifest, shown: Sequence[ImageRecord], folder: Path, params: Params, title: str
) -> np.ndarray:
    """Confusion matrix, (K, K + 1) int64, of a network over the validation images.

    Of the first MAX_REPORT_IMAGES of them, and of the training images `shown`, the predicted classes are written to
    folder/SPLIT/ID.png, and of training images the confidence to folder/confidence/ID.png. SesamError if an image or a
    fine label cannot be read.
    """
    total = np.zeros((len(manifest.classes), len(manifest.classes) + 1), np.int64)
    items = [(record, "val", k < MAX_REPORT_IMAGES) for k, record in enumerate(manifest.val)]
    items += [(record, "train", True) for record in shown]
    write = partial(_write, num_classes=len(manifest.classes), palette=manifest.palette, folder=folder)
    make_steps = partial(make_predict_steps, network, manifest.classes, write, params.runtime, params.evaluation)
    run_batches([[item] for item in items], make_steps, params.runtime, title, partial(np.add, total, out=total))
    return total


def _write(
    item: tuple[ImageRecord, str, bool],
    predicted: np.ndarray,
    confidence: np.ndarray,
    num_classes: int,
    palette: Palette,
    folder: Path,
) -> np.ndarray | int:
    """The confusion matrix of a validation image, 0 for a training image; files of an image that is shown."""
    record, split, is_shown = item
    if is_shown:
        write_label(folder / split / f"{record.id}.png", predicted, palette)
    if split == "val":
        return confusion_matrix(load_fine_label("val", record, num_classes), predicted, num_classes)
    write_gray(folder / "confidence" / f"{record.id}.png", confidence)
    return 0


def network_metrics(
    matrix: np.ndarray, classes: Sequence[str], loss: list[list[float]], evaluation: EvaluationParams
) -> dict[str, Any]:
    """A network's scores, IoU per class, confusion matrix, loss over steps, and how it predicted, ready for JSON."""
    class_ious = dict(zip(classes, round_values(class_iou(matrix)), strict=True))
    scores = network_scores(matrix) | {"class_iou": class_ious, "confusion_matrix": matrix.tolist(), "loss": loss}
    return scores | {"evaluation": evaluation.describe()}


def loss_curve(log: Path) -> list[list[float]]:
    """[step, loss] as DVCLive logged them; empty for a training shorter than a log step. SesamError if damaged."""
    path = log / "plots/metrics/loss.tsv"
    if not path.exists():
        return []
    try:
        with open_regular(path) as file:
            rows = csv.DictReader(io.TextIOWrapper(file, "utf-8", newline=""), delimiter="\t")
            return [[int(row["step"]), round(float(row["loss"]), 5)] for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise SesamError(f"{path} is not a log of a training's loss. Train the network again.") from None
