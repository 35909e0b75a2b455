"""The steps of the method side by side, one page an image, in the data set's colours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from sesam.artifacts.manifest import Dataset
from sesam.labels import UNLABELLED, confident_labels
from sesam.artifacts.sources import SOURCE_NAMES, SOURCE_PALETTE
from sesam.cli.explain import Explained
from sesam.reporting.pages import Tile, class_legend, coloured, dimmed, page_of, with_masks


def val_panel(image: np.ndarray, fine: np.ndarray, predicted: Mapping[str, np.ndarray], data: Dataset) -> Image.Image:
    """Image, fine label, and the prediction of each network by name, in a row.

    image: (H, W, 3) uint8 RGB; the others (H, W) uint8.
    """
    row = [Tile("image", image), Tile("fine label", coloured(fine, data.palette))]
    row += [Tile(name, coloured(labels, data.palette)) for name, labels in predicted.items()]
    return page_of([row], [class_legend([fine, *predicted.values()], data.classes, data.palette)])


def train_panel(found: Explained, name: str, student: np.ndarray, threshold: float, data: Dataset) -> Image.Image:
    """Image, fine label and weak label; below, what the round `name` made of them.

    student: its prediction, (H, W) uint8. threshold: γ, below which the teacher is shown pale.
    """
    image, palette = found.image, data.palette
    maps = [found.fine, found.weak, found.merged, student]
    if found.predicted is None:
        teacher = Tile("no teacher", np.full_like(image, 255))
    else:
        unsure = confident_labels(found.predicted, found.confidence, threshold) == UNLABELLED
        teacher = Tile("teacher, pale where unsure", dimmed(coloured(found.predicted, palette), unsure))
        maps.append(found.predicted)
    rows = [
        [
            Tile("image", image),
            Tile("fine label", coloured(found.fine, palette)),
            Tile("weak label", coloured(found.weak, palette)),
        ],
        [
            teacher,
            Tile(f"{name}: SAM's masks", with_masks(image, found.selected, palette)),
            Tile(f"{name}: merged label", coloured(found.merged, palette)),
            Tile(f"{name}: label source", coloured(found.sources, SOURCE_PALETTE)),
            Tile(f"{name}: student", coloured(student, palette)),
        ],
    ]
    sources = dict(zip(SOURCE_NAMES, SOURCE_PALETTE, strict=True))
    return page_of(rows, [class_legend(maps, data.classes, palette), sources])
