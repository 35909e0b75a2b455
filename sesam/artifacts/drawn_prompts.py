"""Boxes and background points that annotators drew: prompts that label no pixel, as JSON beside a weak label's PNG."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from sesam.artifacts.archives import damaged_artifact
from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import describe_validation_error

ClassId = Annotated[int, Field(ge=0, le=254, alias="class")]
Point = tuple[int, int]  # x, y
Box = tuple[int, int, int, int]  # x0, y0, x1, y1, the far edges exclusive


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class DrawnBox:
    """A box around an object of a class."""

    class_id: ClassId
    box: Box


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class BackgroundPoint:
    """A pixel that is not of the nearest object of a class."""

    class_id: ClassId
    point: Point


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class DrawnPrompts:
    """What annotators drew in an image."""

    boxes: tuple[DrawnBox, ...] = ()
    background_points: tuple[BackgroundPoint, ...] = ()

    def __add__(self, other: Self) -> Self:
        return type(self)(self.boxes + other.boxes, self.background_points + other.background_points)


NO_PROMPTS = DrawnPrompts()
_DRAWN_PROMPTS = TypeAdapter(DrawnPrompts)


def write_drawn_prompts(folder: Path, record: ImageRecord, prompts: DrawnPrompts) -> None:
    """Add an image's prompts to those in the folder of its weak label, if there are any."""
    path = _path(folder, record)
    if path.exists():
        prompts = _DRAWN_PROMPTS.validate_json(read_bytes(path)) + prompts
    if prompts.boxes or prompts.background_points:
        write_json(path, _DRAWN_PROMPTS.dump_python(prompts, mode="json", by_alias=True))


def read_drawn_prompts(folder: Path, record: ImageRecord, num_classes: int) -> DrawnPrompts:
    """An image's prompts as `write_drawn_prompts` wrote them; SesamError if the file is anything else."""
    path = _path(folder, record)
    if not path.exists():
        return NO_PROMPTS
    try:
        prompts = _DRAWN_PROMPTS.validate_json(read_bytes(path))
    except ValidationError as problem:
        raise damaged_artifact(path, describe_validation_error(problem)[0]) from None
    class_ids = [x.class_id for x in prompts.boxes] + [x.class_id for x in prompts.background_points]
    if class_ids and max(class_ids) >= num_classes:
        raise damaged_artifact(path, f"class {max(class_ids)}, where classes are 0 to {num_classes - 1}")
    for left, top, right, bottom in (entry.box for entry in prompts.boxes):
        if not (0 <= left < right <= record.width and 0 <= top < bottom <= record.height):
            raise damaged_artifact(path, "a box that is not in the image")
    if any(
        not (0 <= x < record.width and 0 <= y < record.height) for x, y in (p.point for p in prompts.background_points)
    ):
        raise damaged_artifact(path, "a background point outside the image")
    return prompts


def _path(folder: Path, record: ImageRecord) -> Path:
    return folder / f"{record.id}.json"
