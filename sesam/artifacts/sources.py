"""Where a pseudo-label's pixel comes from: the values of the source PNGs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sesam.artifacts.manifest import Item, item_label
from sesam.paths import pseudo_labels

NONE, WEAK, SAM, CONFIDENT = range(4)
SOURCE_NAMES = ("none", "weak label", "SAM", "confident prediction")
SOURCE_PALETTE = ((0, 0, 0), (230, 159, 0), (0, 114, 178), (0, 158, 115))


def merged_label(name: str, item: Item, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image's label of a round, of so many classes, and its sources, both (H, W) uint8; see `item_label`."""
    folder = pseudo_labels(name)
    return item_label(folder / "labels", item, classes), item_sources(folder / "sources", item)


def item_sources(folder: Path, item: Item) -> np.ndarray:
    """The sources of an image's label, (H, W) uint8; SesamError for values that are none."""
    return item_label(folder, item, len(SOURCE_NAMES), unlabelled=False)
