"""A trained network over many images: read, predict, write."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sesam.artifacts.label_png import Palette, write_gray, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_image
from sesam.execution.device import resolve_device
from sesam.execution.pipeline import PipelineSteps, pending_batches, run_pipeline
from sesam.params import Runtime
from sesam.segmentation.network import Predictor, load_predictor

SplitRecord = tuple[str, ImageRecord]  # a split, and an image of it
Prediction = tuple[SplitRecord, np.ndarray, np.ndarray]  # with the arrays that `predict` returns


def run_inference(
    network: Path,
    classes: Sequence[str],
    records: Sequence[SplitRecord],
    write: Callable[..., Any],
    runtime: Runtime,
    title: str,
    collect: Callable[[Any], object] = lambda result: None,
) -> None:
    """Call write(record, classes, confidence) for each image, and `collect` with what it returns.

    SesamError if the folder `network` has no network of these classes, or an image cannot be read.
    """
    # one image per batch, so that its prediction does not depend on others
    batches = pending_batches(records, lambda record: True, 1)
    run_pipeline(batches, partial(_load_steps, network, classes, write, runtime), runtime, title, collect)


def predict_images(network: Path, data: Dataset, folder: Path, runtime: Runtime, title: str) -> None:
    """Write predicted classes and confidence of the training images that `folder` lacks."""
    pending = [("train", record) for record in data.train if not (folder / "confidence" / f"{record.id}.png").exists()]
    write = partial(_write_prediction, folder=folder, palette=data.palette)
    run_inference(network, data.classes, pending, write, runtime, title)


def _load_steps(network: Path, classes: Sequence[str], write: Callable[..., Any], runtime: Runtime) -> PipelineSteps:
    device = resolve_device(runtime)
    predict = load_predictor(network, device, classes)
    return PipelineSteps(_read, partial(_predict_each, predict=predict), write, device)


def _read(record: SplitRecord) -> tuple[SplitRecord, np.ndarray]:
    return record, load_image(record[1])


def _predict_each(loaded: list[tuple[SplitRecord, np.ndarray]], predict: Predictor) -> list[Prediction]:
    return [(record, *predict(image)) for record, image in loaded]


def _write_prediction(
    record: SplitRecord, classes: np.ndarray, confidence: np.ndarray, folder: Path, palette: Palette
) -> None:
    """Both (H, W) uint8. The confidence comes last: where it exists, the image is done."""
    write_label(folder / "labels" / f"{record[1].id}.png", classes, palette)
    write_gray(folder / "confidence" / f"{record[1].id}.png", confidence)
