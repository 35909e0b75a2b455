"""Where a pseudo-label's pixel comes from: the values of the source PNGs."""

from pathlib import Path

import numpy as np

from sesam.artifacts.manifest import ImageRecord, load_label
from sesam.paths import pseudo_label_dir

NONE, WEAK, SAM, CONFIDENT, FINE = range(5)
SOURCE_NAMES = ("none", "weak", "sam", "confident", "fine")  # by value, as keys of JSON files and losses
SOURCE_TITLES = ("none", "weak label", "SAM", "confident prediction", "fine label")  # for people
SOURCE_PALETTE = ((0, 0, 0), (230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167))  # Okabe and Ito's


def load_pseudo_label(round_name: str, record: ImageRecord, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image's pseudo-label of a round and its sources, both (H, W) uint8; see `load_label`."""
    folder = pseudo_label_dir(round_name)
    return load_label(folder / "labels", record, num_classes), load_sources(folder / "sources", record)


def load_sources(folder: Path, record: ImageRecord) -> np.ndarray:
    """The sources of an image's pseudo-label, (H, W) uint8; SesamError for other values."""
    return load_label(folder, record, len(SOURCE_NAMES), unlabeled=False)
