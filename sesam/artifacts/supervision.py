"""What annotators gave each training image: fine masks, coarse polygons, scribbles, points, boxes or nothing."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import SesamError
from sesam.params import Kind
from sesam.paths import SUPERVISION

_KINDS = TypeAdapter(dict[str, Kind])


def save_supervision(kinds: Mapping[str, Kind]) -> None:
    """Write the kind of each training image, by id, to data/supervision.json."""
    write_json(SUPERVISION, dict(kinds))


def load_supervision(records: Iterable[ImageRecord]) -> dict[str, Kind]:
    """What `save_supervision` wrote; SesamError unless it has exactly these images."""
    try:
        kinds = _KINDS.validate_json(read_bytes(SUPERVISION), strict=True)
    except ValidationError:
        kinds = {}
    if kinds.keys() != {record.id for record in records}:
        raise SesamError(f"{SUPERVISION} is damaged, or of other training images. Run `dvc repro weak_labels`.")
    return kinds


def with_kinds(records: Sequence[ImageRecord]) -> list[tuple[ImageRecord, Kind]]:
    """The training images, each with its kind."""
    kinds = load_supervision(records)
    return [(record, kinds[record.id]) for record in records]
