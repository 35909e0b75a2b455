"""A trained network over many images: read, predict, write."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sesam.artifacts.image_io import Palette, write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest, load_image
from sesam.execution.batches import BatchSteps, run_batches
from sesam.execution.device import resolve_device
from sesam.params import EvaluationParams, Params, Runtime
from sesam.segmentation.network import load_network, predict

Item = tuple[Any, ...]  # an ImageRecord, then what `write` needs to know about it


def make_predict_steps(
    network: Path, classes: Sequence[str], write: Callable[..., Any], runtime: Runtime, evaluation: EvaluationParams
) -> BatchSteps:
    """For `run_batches`: call write(item, *predict(image)) for each item.

    SesamError if the folder `network` has no network of these classes, or an image cannot be read. An item is a batch,
    so that its prediction does not depend on others.
    """
    device = resolve_device(runtime)
    model = load_network(network, device, classes)

    def predict_each(loaded: list[tuple[Item, np.ndarray]]) -> list[tuple[Item, np.ndarray, np.ndarray]]:
        return [(item, *predict(model, image, device, evaluation)) for item, image in loaded]

    return BatchSteps(_read, predict_each, write, device)


def _read(item: Item) -> tuple[Item, np.ndarray]:
    return item, load_image(item[0])


def predict_images(network: Path, manifest: Manifest, folder: Path, params: Params, title: str) -> None:
    """Write predicted classes and confidence of the training images that `folder` lacks."""
    pending = [
        record
        for record in manifest.train
        if not all((folder / kind / f"{record.id}.png").exists() for kind in ("labels", "confidence"))
    ]
    write = partial(_write, folder=folder, palette=manifest.palette)
    make_steps = partial(make_predict_steps, network, manifest.classes, write, params.runtime, params.evaluation)
    run_batches([[(record,)] for record in pending], make_steps, params.runtime, title)


def _write(
    item: tuple[ImageRecord], classes: np.ndarray, confidence: np.ndarray, folder: Path, palette: Palette
) -> None:
    """Both (H, W) uint8."""
    write_label(folder / "labels" / f"{item[0].id}.png", classes, palette)
    write_gray(folder / "confidence" / f"{item[0].id}.png", confidence)
