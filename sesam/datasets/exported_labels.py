"""The labels that `sesam export` gave an annotation tool, so that what comes back the same is not a correction.

Exports come back whole: without this, SAM's own unreviewed masks would become annotators' weak labels.
"""

from collections import Counter
from collections.abc import Sequence
from glob import escape

import numpy as np

from sesam.artifacts.image_io import Palette, write_label
from sesam.artifacts.manifest import ImageRecord, load_label
from sesam.labels import IGNORE_INDEX
from sesam.paths import CORRECTIONS

EXPORTED_LABELS = CORRECTIONS / ".exported"  # ROUND/ID.png; to be committed with the corrections


def save_exported(round_name: str, record: ImageRecord, labels: np.ndarray, palette: Palette) -> None:
    """Keep the labels (H, W) uint8 of an image that is exported."""
    write_label(EXPORTED_LABELS / round_name / f"{record.id}.png", labels, palette)


def load_exported(record: ImageRecord, num_classes: int) -> list[np.ndarray]:
    """What was exported of an image, per round; SesamError if a file is damaged."""
    folders = [path.parents[record.id.count("/")] for path in EXPORTED_LABELS.glob(f"*/{escape(record.id)}.png")]
    return [load_label(folder, record, num_classes) for folder in sorted(folders)]


def drop_unchanged(labels: np.ndarray, exported: Sequence[np.ndarray]) -> tuple[np.ndarray, Counter[str]]:
    """Labels (H, W) uint8 without the pixels that are as exported; counts of pixels by what became of them."""
    labeled, same, was_labeled = labels != IGNORE_INDEX, np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
    for other in exported:
        same |= labels == other
        was_labeled |= other != IGNORE_INDEX
    counts = {"changed or new": labeled & ~same, "unchanged": labeled & same, "deleted": was_labeled & ~labeled}
    kept = np.where(same, IGNORE_INDEX, labels).astype(np.uint8)
    return kept, Counter({name: int(pixels.sum()) for name, pixels in counts.items()})
