"""What holds of every label that a stage has written, read back from the disk: where it does not, the DAG stops there.

No input can break these: what breaks them is a fault of this code, of a library, or of the machine. A network would
learn from such labels without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sesam.artifacts.manifest import ImageRecord, load_label
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX


def check_classes(folder: Path, item: ImageRecord, classes: int) -> np.ndarray:
    """The label map folder/ID.png, (H, W) uint8; SesamError unless it has its image's size and class ids or 255."""
    labels = load_label(folder, item)
    known = labels < classes
    if not (known | (labels == IGNORE_INDEX)).all():
        wrong = sorted(set(labels[~known & (labels != IGNORE_INDEX)].tolist()))
        raise invariant_error(folder / f"{item.id}.png", f"class {wrong[0]} of {classes}")
    return labels


def check_complete(folder: Path, items: Iterable[ImageRecord]) -> None:
    """SesamError unless a folder holds a PNG for each image, and none more."""
    expected = {f"{item.id}.png" for item in items}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    if different := sorted(expected ^ found):
        raise invariant_error(
            folder / different[0], "it is missing" if different[0] in expected else "no image is called so"
        )


def invariant_error(path: Path, what: str) -> SesamError:
    """The error of what does not hold of a file."""
    return SesamError(
        f"{path}: {what}. No input should lead to this: please run again (is the disk or the memory at fault?), and "
        "if it stays, report it with this message and params.yaml."
    )


def check_merged(
    labels_folder: Path, sources_folder: Path, item: ImageRecord, classes: int, weak: np.ndarray, filling: np.ndarray
) -> None:
    """SesamError unless an image's labels and sources, as they lie on the disk, fit each other and their origins.

    weak, filling: (H, W) uint8 weak labels and confident predictions, 255 = none.
    """
    labels = check_classes(labels_folder, item, classes)
    sources = load_label(sources_folder, item)
    drawn = weak != IGNORE_INDEX
    confident = sources == CONFIDENT
    for holds, what in (
        (np.isin(sources, (NONE, WEAK, SAM, CONFIDENT)).all(), "a source that is none"),
        ((labels[drawn] == weak[drawn]).all(), "a weak label that was changed"),
        (((sources == WEAK) == drawn).all(), "a weak label without its source, or the source without one"),
        (
            ((sources == NONE) == (labels == IGNORE_INDEX)).all(),
            "a label without a source, or a source without a label",
        ),
        ((labels[confident] == filling[confident]).all(), "a confident prediction that is none"),
    ):
        if not holds:
            raise invariant_error(sources_folder / f"{item.id}.png", what)
