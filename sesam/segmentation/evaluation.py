"""A network's confusion matrix over the validation images, and its scores."""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sesam.artifacts.label_png import Palette, write_gray, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_fine_label
from sesam.errors import SesamError
from sesam.params import Runtime
from sesam.scores import class_iou, confusion_matrix, network_scores, round_values
from sesam.segmentation.inference import SplitRecord, run_inference


def evaluate_network(
    network: Path, data: Dataset, shown: Mapping[str, Sequence[ImageRecord]], folder: Path, runtime: Runtime, title: str
) -> np.ndarray:
    """Confusion matrix, (K, K + 1) int64, of a network over the validation images.

    shown: images by split, train and val, whose predictions are written: classes to folder/SPLIT/ID.png, of training
    images the confidence to folder/confidence/ID.png. SesamError if an image or a fine label cannot be read.
    """
    count = len(data.classes)
    total = np.zeros((count, count + 1), np.int64)

    def add(matrix: np.ndarray | None) -> None:
        if matrix is not None:
            np.add(total, matrix, out=total)

    records = [("val", record) for record in data.val] + [("train", record) for record in shown["train"]]
    ids = {split: frozenset(record.id for record in images) for split, images in shown.items()}
    write = partial(_write, classes=count, palette=data.palette, shown=ids, folder=folder)
    run_inference(network, data.classes, records, write, runtime, title, add)
    return total


def _write(
    split_record: SplitRecord,
    predicted: np.ndarray,
    confidence: np.ndarray,
    classes: int,
    palette: Palette,
    shown: Mapping[str, frozenset[str]],
    folder: Path,
) -> np.ndarray | None:
    """The confusion matrix of a validation image; files of an image that is shown."""
    split, record = split_record
    if record.id in shown[split]:
        write_label(folder / split / f"{record.id}.png", predicted, palette)
        if split == "train":
            write_gray(folder / "confidence" / f"{record.id}.png", confidence)
    return confusion_matrix(load_fine_label("val", record, classes), predicted, classes) if split == "val" else None


def network_metrics(matrix: np.ndarray, classes: Sequence[str], loss: list[list[float]]) -> dict[str, Any]:
    """A network's scores, IoU per class, confusion matrix, and loss over steps, ready for JSON."""
    class_ious = dict(zip(classes, round_values(class_iou(matrix)), strict=True))
    return network_scores(matrix) | {"classes": class_ious, "confusion": matrix.tolist(), "loss": loss}


def loss_curve(log: Path) -> list[list[float]]:
    """[step, loss] as DVCLive logged them; empty for a training shorter than a log step. SesamError if damaged."""
    path = log / "plots/metrics/loss.tsv"
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [[int(row["step"]), round(float(row["loss"]), 5)] for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise SesamError(f"{path} is not a log of a training's loss. Train the network again.") from None
