"""The labels that `sesam export` gave an annotation tool, so that what comes back the same is not a correction.

Exports come back whole: without this, SAM's own unreviewed masks would become annotators' weak labels. Every export
stays, for an older one may still be at an annotator's.
"""

from collections import Counter
from collections.abc import Sequence
from glob import escape
from itertools import count

import numpy as np

from sesam.artifacts.image_io import Palette, write_label
from sesam.artifacts.manifest import ImageRecord, load_label
from sesam.labels import IGNORE_INDEX
from sesam.paths import CORRECTIONS

EXPORTED_LABELS = CORRECTIONS / ".exported"  # ROUND/ID.png, ROUND.2/ID.png, …; to be committed with the corrections


def save_exported(round_name: str, record: ImageRecord, labels: np.ndarray, palette: Palette) -> None:
    """Keep the labels (H, W) uint8 of an image that is exported, beside earlier ones.

    Without annotators' pixels and corrections, which are to be kept when they come back.
    """
    for number in count(1):
        folder = EXPORTED_LABELS / (round_name if number == 1 else f"{round_name}.{number}")
        if not (path := folder / f"{record.id}.png").exists():
            write_label(path, labels, palette)
        elif not np.array_equal(load_label(folder, record, len(palette)), labels):
            continue
        return


def load_exported(record: ImageRecord, num_classes: int) -> list[np.ndarray]:
    """What was exported of an image, each time; SesamError if a file is damaged."""
    folders = [path.parents[record.id.count("/")] for path in EXPORTED_LABELS.glob(f"*/{escape(record.id)}.png")]
    return [load_label(folder, record, num_classes) for folder in sorted(folders)]


def drop_unchanged(
    labels: np.ndarray, exported: Sequence[np.ndarray], weak: np.ndarray
) -> tuple[np.ndarray, Counter[str]]:
    """Labels without the pixels that are as exported; counts of pixels by what became of them. All (H, W) uint8.

    They were made from the export that is most like them. weak: annotators' labels, which need no correction.
    """
    nothing = np.full_like(labels, IGNORE_INDEX)
    original = max(reversed(exported), key=lambda other: int((other == labels).sum()), default=nothing)
    labeled, same = labels != IGNORE_INDEX, (labels == original) | (labels == weak)
    deleted = (original != IGNORE_INDEX) & ~labeled
    counts = {"changed or new": labeled & ~same, "unchanged": labeled & same, "deleted": deleted}
    kept = np.where(same, IGNORE_INDEX, labels).astype(np.uint8)
    return kept, Counter({name: int(pixels.sum()) for name, pixels in counts.items()})
