"""A network's confusion matrix over images."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sesam.artifacts.label_png import Palette, write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, load_fine_label, load_image
from sesam.errors import SesamError
from sesam.execution.device import resolve_device
from sesam.execution.pipeline import PipelineSteps, StepsFactory, pending_batches, run_pipeline
from sesam.params import Runtime
from sesam.scores import class_iou, confusion_matrix, network_scores, round_values

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # see `predict` in sesam/segmentation/network.py


Work = tuple[str, ImageRecord]  # of a split


class EvaluationTask(NamedTuple):
    """What becomes of a prediction: a matrix over the classes, and files of the ids in `shown`, by split.

    Predicted classes go to folder/SPLIT/ID.png, of training images the confidence to folder/confidence/ID.png.
    """

    classes: Sequence[str]
    palette: Palette
    shown: Mapping[str, frozenset[str]]
    folder: Path


def read(work: Work) -> tuple[Work, np.ndarray]:
    return work, load_image(work[1])


def compute(loaded: list[tuple[Work, np.ndarray]], predict: Predict) -> list[tuple[Work, np.ndarray, np.ndarray]]:
    return [(work, *predict(image)) for work, image in loaded]


def write(work: Work, predicted: np.ndarray, confidence: np.ndarray, judging: EvaluationTask) -> np.ndarray | None:
    """The confusion matrix of a validation image, (K, K + 1) int64; files of an image that is shown."""
    (split, item), (classes, palette, shown, folder) = work, judging
    if item.id in shown[split]:
        write_label(folder / split / f"{item.id}.png", predicted, palette)
        if split == "train":
            write_gray(folder / "confidence" / f"{item.id}.png", confidence)
    count = len(classes)
    return confusion_matrix(load_fine_label("val", item, count), predicted, count) if split == "val" else None


def steps(network: Path, judging: EvaluationTask, runtime: Runtime) -> PipelineSteps:
    from sesam.segmentation.network import load_network, predict

    device = resolve_device(runtime)
    model = load_network(network, device, judging.classes)
    computing = partial(compute, predict=partial(predict, model, device=device))
    return PipelineSteps(read, computing, partial(write, judging=judging), device)


def evaluate_network(
    load: StepsFactory, work: Sequence[Work], classes: int, runtime: Runtime, title: str
) -> np.ndarray:
    """Confusion matrix, (K, K + 1) int64, of a network over the validation images of `work`; load: see `steps`."""
    total = np.zeros((classes, classes + 1), np.int64)

    def add(matrix: np.ndarray | None) -> None:
        if matrix is not None:
            np.add(total, matrix, out=total)

    batches = pending_batches(work, lambda one: True, 1)  # one image each: no prediction depends on another image
    run_pipeline(batches, load, runtime, title, add)
    return total


def network_metrics(matrix: np.ndarray, classes: Sequence[str], loss: list[list[float]]) -> dict[str, Any]:
    """A network's scores, IoU of each class, confusion matrix, and loss over steps, ready for JSON."""
    by_class = dict(zip(classes, round_values(class_iou(matrix)), strict=True))
    return network_scores(matrix) | {"classes": by_class, "confusion": matrix.tolist(), "loss": loss}


def loss_curve(log: Path) -> list[list[float]]:
    """[step, loss] as DVCLive logged them; nothing for a training shorter than a log step. SesamError if damaged."""
    path = log / "plots/metrics/loss.tsv"
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [[int(row["step"]), round(float(row["loss"]), 5)] for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise SesamError(f"{path} is no log of a training's loss. Train the network again.") from None
