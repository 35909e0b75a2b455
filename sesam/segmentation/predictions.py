"""A teacher's predictions on training images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sesam.artifacts.label_png import Palette, write_gray, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_image
from sesam.labels import IGNORE_INDEX
from sesam.params import Params
from sesam.paths import network_dir

if TYPE_CHECKING:
    from collections.abc import Callable

    from sesam.execution.pipeline import PipelineSteps


def read(item: ImageRecord) -> tuple[ImageRecord, np.ndarray]:
    return item, load_image(item)


def compute(
    loaded: list[tuple[ImageRecord, np.ndarray]], predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> list[tuple[ImageRecord, np.ndarray, np.ndarray]]:
    return [(item, *predict(image)) for item, image in loaded]


def write(item: ImageRecord, classes: np.ndarray, confidence: np.ndarray, folder: Path, palette: Palette) -> None:
    """An image's prediction, both (H, W) uint8; the confidence comes last and says that all is there."""
    write_label(folder / "labels" / f"{item.id}.png", classes, palette)
    write_gray(folder / "confidence" / f"{item.id}.png", confidence)


def write_nothing(item: ImageRecord, folder: Path, palette: Palette) -> None:
    """The prediction of a round without a teacher."""
    shape = (item.height, item.width)
    write(item, np.full(shape, IGNORE_INDEX, np.uint8), np.zeros(shape, np.uint8), folder, palette)


def steps(params: Params, name: str, dataset: Dataset, folder: Path) -> PipelineSteps:
    """With the round's teacher."""
    # here: torch and mmsegmentation take longer to import than a round without a teacher
    from sesam.execution.device import resolve_device
    from sesam.execution.pipeline import PipelineSteps
    from sesam.segmentation.network import load_network, predict

    device = resolve_device(params.runtime)
    model = load_network(network_dir(params.rounds[name].teacher), device, dataset.classes)
    computing = partial(compute, predict=partial(predict, model, device=device))
    return PipelineSteps(read, computing, partial(write, folder=folder, palette=dataset.palette), device)
