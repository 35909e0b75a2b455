"""What holds of all labels, checked before they are written: where it does not, the DAG stops.

No input can break these, only a fault of this code, of a library, or of the machine; a network would learn from it.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sesam.artifacts.manifest import ImageRecord
from sesam.artifacts.sources import CONFIDENT, FINE, NONE, SOURCE_NAMES, WEAK
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX


def check_labels(labels: np.ndarray, record: ImageRecord, num_classes: int) -> None:
    """SesamError unless an image's label map is (H, W) uint8 of class ids or 255."""
    if labels.shape != (record.height, record.width) or labels.dtype != np.uint8:
        expected = f"({record.height}, {record.width}) uint8"
        raise invariant_error(record.id, f"labels are {labels.shape} {labels.dtype}, expected {expected}")
    unknown = labels[(labels >= num_classes) & (labels != IGNORE_INDEX)]
    if unknown.size:
        raise invariant_error(record.id, f"class {unknown.min()} of {num_classes}")


def check_pseudo_label(
    labels: np.ndarray,
    sources: np.ndarray,
    weak: np.ndarray,
    confident: np.ndarray,
    record: ImageRecord,
    num_classes: int,
) -> None:
    """SesamError unless an image's labels and sources fit each other and what they were merged from.

    All (H, W) uint8. weak, confident: weak labels and confident predictions, 255 = none.
    """
    check_labels(labels, record, num_classes)
    drawn, predicted = weak != IGNORE_INDEX, sources == CONFIDENT
    for holds, what in (
        (sources < len(SOURCE_NAMES), "an unknown source"),
        (labels[drawn] == weak[drawn], "a weak label that was changed"),
        (np.isin(sources, (WEAK, FINE)) == drawn, "a weak label without its source, or the source without one"),
        ((sources == NONE) == (labels == IGNORE_INDEX), "a label without a source, or a source without a label"),
        (labels[predicted] == confident[predicted], "a confident prediction that was not predicted"),
    ):
        if not holds.all():
            raise invariant_error(record.id, what)


def check_complete(folder: Path, records: Iterable[ImageRecord]) -> None:
    """SesamError unless a folder has exactly one PNG per image."""
    expected = {f"{record.id}.png" for record in records}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    if different := sorted(expected ^ present):
        what = "it is missing" if different[0] in expected else "no image has this id"
        raise invariant_error(folder / different[0], what)


def invariant_error(where: Path | str, what: str) -> SesamError:
    """The error of what does not hold of a file or an image."""
    return SesamError(
        f"{where}: {what}. No input should lead to this: please run again (is the disk or the memory at fault?), and "
        "if it stays, report it with this message and params.yaml."
    )
