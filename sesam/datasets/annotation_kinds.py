"""Which kind of annotation each training image has: told by what was drawn in it, or by a list."""

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path

from sesam.artifacts.atomic_io import read_bytes
from sesam.artifacts.manifest import ImageRecord
from sesam.datasets.annotation_shapes import Drawing
from sesam.datasets.annotations.common import Annotation, Drawn
from sesam.datasets.annotations.registry import WithPrompts
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX
from sesam.params import KINDS, Kind, WeakLabelParams

KINDS_FILE = "kinds.csv"  # beside annotators' files: image,kind
FULLY_LABELED = 0.95  # share of an image's pixels: fine masks leave borders, and what has no class
_BY_SHAPE: dict[str, Kind] = {"polygon": "coarse", "line": "scribble", "point": "point"}  # the costliest first


def may_be_unannotated(record: ImageRecord, config: WeakLabelParams, listed: Mapping[str, Kind]) -> bool:
    """Whether an image needs no annotation: each of images/unlabeled, others where params.yaml or a list says so."""
    is_unlabeled = "images/unlabeled/" in Path(record.image).as_posix()
    return config.unannotated == "use" or is_unlabeled or listed.get(record.id) == "none"


def kind_of(annotation: Annotation, drawn: Drawn, default: Kind) -> Kind:
    """The kind of an image's annotation. default: of PNGs and masks, unless they label all of the image."""
    labeled = drawn.labels != IGNORE_INDEX
    if labeled.mean() >= FULLY_LABELED:
        return "fine"
    if not labeled.any():
        return "box" if drawn.prompts.boxes else "none"
    shapes = _shape_kinds(annotation)
    return next((kind for shape, kind in _BY_SHAPE.items() if shape in shapes), default)


def _shape_kinds(annotation: Annotation) -> set[str]:
    if isinstance(annotation, WithPrompts):
        return set().union(*(_shape_kinds(part) for part in annotation.parts))
    return {shape.kind for shape in annotation.shapes} if isinstance(annotation, Drawing) else set()


def read_kinds(source: Path, records: Iterable[ImageRecord]) -> dict[str, Kind]:
    """The kinds that kinds.csv in the folder `source` gives training images, by id; none without that file.

    SesamError for a line that is not an image's id and a kind.
    """
    path, ids, kinds = source / KINDS_FILE, {record.id for record in records}, dict[str, Kind]()
    if not path.is_file():
        return kinds
    try:
        rows = list(csv.reader(StringIO(read_bytes(path).decode("utf-8-sig")), strict=True))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise SesamError(f"{path} cannot be read ({problem}). Save it as CSV in UTF-8.") from None
    for number, row in enumerate(rows, 1):
        if row in ([], ["image", "kind"]):
            continue
        if len(row) != 2 or row[0] not in ids or row[1] not in KINDS or kinds.get(row[0], row[1]) != row[1]:
            expected = f"the id of a training image and one of {', '.join(KINDS)}, each image once"
            raise SesamError(f"{path}, line {number}: {','.join(row):.80}; expected {expected}. Correct the line.")
        kinds[row[0]] = row[1]
    return kinds
