"""What the round's teacher sees in every training image: its classes P and its confidence c.

A round without a teacher gets predictions that say nothing, class 255 and confidence 0, so that no later
stage need know.

python -m stages.predict ROUND
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sesam.command_line import round_of_command_line
from sesam.artifacts.manifest import Dataset, Item, item_image
from sesam.errors import run_stage
from sesam.artifacts.atomic_io import whole_folder
from sesam.paths import of_round
from sesam.artifacts.label_png import Palette, write_gray, write_label
from sesam.labels import UNLABELLED
from sesam.artifacts.fingerprint import made_of
from sesam.execution.parallel import progress
from sesam.params import NO_TEACHER, Params

if TYPE_CHECKING:
    from collections.abc import Callable

    from sesam.execution.pipeline import Steps


def read(item: Item) -> tuple[Item, np.ndarray]:
    return item, item_image(item)


def compute(
    loaded: list[tuple[Item, np.ndarray]], predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> list[tuple[Item, np.ndarray, np.ndarray]]:
    return [(item, *predict(image)) for item, image in loaded]


def write(item: Item, classes: np.ndarray, confidence: np.ndarray, folder: Path, palette: Palette) -> None:
    """An image's prediction, both (H, W) uint8; the confidence comes last and says that all is there."""
    write_label(folder / "labels" / f"{item.id}.png", classes, palette)
    write_gray(folder / "confidence" / f"{item.id}.png", confidence)


def write_nothing(item: Item, folder: Path, palette: Palette) -> None:
    """The prediction of a round without a teacher."""
    shape = (item.height, item.width)
    write(item, np.full(shape, UNLABELLED, np.uint8), np.zeros(shape, np.uint8), folder, palette)


def steps(params: Params, name: str, dataset: Dataset, folder: Path) -> Steps:
    """With the round's teacher."""
    # here: torch and mmsegmentation take longer to import than a round without a teacher
    from sesam.execution.device import pick_device
    from sesam.execution.pipeline import Steps
    from sesam.segmentation.network import load_network, predict

    device = pick_device(params.runtime)
    model = load_network(Path(params.rounds[name].teacher), device, dataset.classes)
    computing = partial(compute, predict=partial(predict, model, device=device))
    return Steps(read, computing, partial(write, folder=folder, palette=dataset.palette), device)


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    dataset, out = Dataset.load(), of_round(name, "predictions")
    if params.rounds[name].teacher == NO_TEACHER:
        with (
            whole_folder(out, packed=True) as folder,
            progress(len(dataset.train), f"predictions {name}: no teacher") as bar,
        ):
            for item in dataset.train:
                write_nothing(item, folder, dataset.palette)
                bar.update()
        return
    from sesam.execution.pipeline import batches_of, run

    with whole_folder(out, made_of("predict", name), packed=True) as folder:
        # one image a batch: what is predicted does not depend on what else is in it
        batches = batches_of(dataset.train, lambda item: not (folder / "confidence" / f"{item.id}.png").exists(), 1)
        run(batches, partial(steps, params, name, dataset, folder), params.runtime, f"predictions {name}")


if __name__ == "__main__":
    run_stage(main)
