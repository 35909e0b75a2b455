"""The steps of the method side by side, one page an image, in the data set's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from stages.common.dataset import Dataset
from stages.common.sources import SOURCE_NAMES, SOURCE_PALETTE
from stages.pictures.tiles import Tile, class_legend, coloured, dimmed, page_of, with_masks


@dataclass(frozen=True)
class Steps:
    """What one round made of an image; maps are (H, W) uint8 unless noted.

    predicted: the teacher's classes, None without a teacher. confident: where they are, bool. selected:
    the components of select_masks. merged, sources: the merged label and where it comes from. student:
    its prediction.
    """

    predicted: np.ndarray | None
    confident: np.ndarray
    selected: Sequence[Mapping[str, Any]]
    merged: np.ndarray
    sources: np.ndarray
    student: np.ndarray


def val_panel(image: np.ndarray, fine: np.ndarray, predicted: Mapping[str, np.ndarray], data: Dataset) -> Image.Image:
    """Image, fine label, and the prediction of each network by name, in a row.

    image: (H, W, 3) uint8 RGB; the others (H, W) uint8.
    """
    row = [Tile("image", image), Tile("fine label", coloured(fine, data.palette))]
    row += [Tile(name, coloured(labels, data.palette)) for name, labels in predicted.items()]
    return page_of([row], [class_legend([fine, *predicted.values()], data.classes, data.palette)])


def train_panel(
    image: np.ndarray, fine: np.ndarray, weak: np.ndarray, name: str, steps: Steps, data: Dataset
) -> Image.Image:
    """Image, fine label and weak label; below, the steps of the round `name`.

    image: (H, W, 3) uint8 RGB; fine, weak: (H, W) uint8.
    """
    palette = data.palette
    if steps.predicted is None:
        teacher = Tile("no teacher", np.full_like(image, 255))
    else:
        teacher = Tile("teacher, pale where unsure", dimmed(coloured(steps.predicted, palette), ~steps.confident))
    rows = [
        [
            Tile("image", image),
            Tile("fine label", coloured(fine, palette)),
            Tile("weak label", coloured(weak, palette)),
        ],
        [
            teacher,
            Tile(f"{name}: SAM's masks", with_masks(image, steps.selected, palette)),
            Tile(f"{name}: merged label", coloured(steps.merged, palette)),
            Tile(f"{name}: label source", coloured(steps.sources, SOURCE_PALETTE)),
            Tile(f"{name}: student", coloured(steps.student, palette)),
        ],
    ]
    maps = [fine, weak, steps.merged, steps.student] + ([] if steps.predicted is None else [steps.predicted])
    sources = dict(zip(SOURCE_NAMES, SOURCE_PALETTE, strict=True))
    return page_of(rows, [class_legend(maps, data.classes, palette), sources])
