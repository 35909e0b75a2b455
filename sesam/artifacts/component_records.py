"""An image's components with their prompts, candidates and selected masks: the JSON files between the stages.

Each component has a number, by which the files of one image are matched.
The files also come by `dvc pull`, so each is checked where it is read: pycocotools hangs on, or crashes with, run
lengths that do not fit their image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from sesam.artifacts.archives import path_to_delete
from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import SesamError, describe_validation_error
from sesam.geometry.rle import rle_to_counts

Number = Annotated[int, Field(ge=1)]
ClassId = Annotated[int, Field(ge=0, le=254, alias="class")]
Rle = Annotated[str, Field(pattern="^[0-o]+$")]  # as COCO compresses them
Finite = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[int, int]  # x, y
Box = tuple[int, int, int, int]  # x0, y0, x1, y1, the far edges exclusive
PromptType = Literal["points", "box", "mask"]
_STRICT = ConfigDict(extra="forbid", strict=True)  # of a document and the records in it


class Outcome(StrEnum):
    """What became of a component: a mask was kept, or why the candidate with the highest predicted IoU was not."""

    KEPT = "kept"
    LOW_COVERAGE = "low_coverage"
    OVERSIZED = "oversized"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Component:
    """A component and its prompt: points, a box, or without both its mask."""

    number: Number
    class_id: ClassId
    rle: Rle
    points: Annotated[list[Point], Field(min_length=1)] | None = None
    box: Box | None = None

    @property
    def prompt_type(self) -> PromptType:
        return "points" if self.points is not None else "box" if self.box is not None else "mask"


@dataclass(frozen=True)
class Candidate:
    """One of SAM's masks for a component."""

    predicted_iou: Annotated[Finite, Field(alias="iou")]
    rle: Rle


@dataclass(frozen=True)
class Selected:
    """A component's kept mask, or if none was kept, the component's own. candidate: which one was kept."""

    number: Number
    class_id: ClassId
    candidate: int | None
    predicted_iou: Annotated[Finite | None, Field(alias="iou")]
    rle: Rle
    outcome: Outcome

    @property
    def kept(self) -> bool:
        return self.outcome is Outcome.KEPT


@dataclass(frozen=True)
class _Candidates:
    number: Number
    candidates: Annotated[list[Candidate], Field(min_length=1)]


@dataclass(frozen=True)
class _Document:
    id: str
    height: int
    width: int


@with_config(_STRICT)
@dataclass(frozen=True)
class _Prompts(_Document):
    prompt: PromptType
    components: list[Component]


@with_config(_STRICT)
@dataclass(frozen=True)
class _Masks(_Document):
    components: list[_Candidates]


@with_config(_STRICT)
@dataclass(frozen=True)
class _Selection(_Document):
    components: list[Selected]


_Kind = TypeVar("_Kind", _Prompts, _Masks, _Selection)
_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (_Prompts, _Masks, _Selection)}


def write_prompts(path: Path, record: ImageRecord, prompt_type: PromptType, components: list[Component]) -> None:
    _write(path, _Prompts(record.id, record.height, record.width, prompt_type, components))


def write_candidates(path: Path, record: ImageRecord, candidates: Mapping[int, list[Candidate]]) -> None:
    """candidates: by component number."""
    components = [_Candidates(number, masks) for number, masks in candidates.items()]
    _write(path, _Masks(record.id, record.height, record.width, components))


def write_selected(path: Path, record: ImageRecord, selected: list[Selected]) -> None:
    _write(path, _Selection(record.id, record.height, record.width, selected))


def read_prompts(path: Path, record: ImageRecord, num_classes: int | None = None) -> list[Component]:
    """An image's components as `prompts` wrote them; SesamError if the file is anything else.

    num_classes: checked where a component's class is used.
    """
    document = _read(path, record, _Prompts)
    for component in document.components:
        if component.prompt_type != document.prompt:
            raise _damaged(path, f"component {component.number} is not prompted with {document.prompt}")
        corners = component.points or []
        if any(not (0 <= x < record.width and 0 <= y < record.height) for x, y in corners):
            raise _damaged(path, f"component {component.number} has points outside the image")
        left, top, right, bottom = component.box or (0, 0, 1, 1)
        if not (0 <= left < right <= record.width and 0 <= top < bottom <= record.height):
            raise _damaged(path, f"component {component.number} has no box in the image")
    _check_classes(path, document.components, 255 if num_classes is None else num_classes)
    return document.components


def read_candidates(path: Path, record: ImageRecord, components: Sequence[Component]) -> dict[int, list[Candidate]]:
    """An image's candidates by component number, as `sam_masks` wrote them.

    SesamError if the file is anything else, or not of the components that were prompted.
    """
    candidates = {prompted.number: prompted.candidates for prompted in _read(path, record, _Masks).components}
    if candidates.keys() != {component.number for component in components}:
        raise _damaged(path, "it is not of the components that were prompted")
    return candidates


def read_selected(path: Path, record: ImageRecord, num_classes: int) -> list[Selected]:
    """An image's components as `select_masks` wrote them; SesamError if the file is anything else."""
    selected = _read(path, record, _Selection).components
    _check_classes(path, selected, num_classes)
    if wrong := [component for component in selected if component.kept != (component.candidate is not None)]:
        raise _damaged(path, f"component {wrong[0].number} is {wrong[0].outcome} with candidate {wrong[0].candidate}")
    return selected


def _write(path: Path, document: _Document) -> None:
    adapter = _ADAPTERS[type(document)]
    write_json(path, adapter.dump_python(document, mode="json", by_alias=True, exclude_defaults=True))


def _read(path: Path, record: ImageRecord, kind: type[_Kind]) -> _Kind:
    try:
        document: _Kind = _ADAPTERS[kind].validate_json(read_bytes(path))
    except ValidationError as problem:
        raise _damaged(path, describe_validation_error(problem)[0]) from None
    if (document.id, document.height, document.width) != (record.id, record.height, record.width):
        raise _damaged(path, f"it is of another image than {record.id}, {record.width}x{record.height}")
    if len({component.number for component in document.components}) < len(document.components):
        raise _damaged(path, "two components have one number")
    pixels = record.height * record.width
    for rle in _every_rle(document):
        counts = rle_to_counts(rle)
        if counts.min() < 0 or counts.max() > pixels or counts.sum() != pixels:  # each, or their sum might wrap around
            raise _damaged(path, f"run lengths do not fit {record.width}x{record.height} pixels")
    return document


def _every_rle(document: _Prompts | _Masks | _Selection) -> Iterable[str]:
    if isinstance(document, _Masks):
        return (candidate.rle for prompted in document.components for candidate in prompted.candidates)
    return (component.rle for component in document.components)


def _check_classes(path: Path, components: Sequence[Component | Selected], num_classes: int) -> None:
    if unknown := [component.class_id for component in components if component.class_id >= num_classes]:
        raise _damaged(path, f"class {unknown[0]}, where classes are 0 to {num_classes - 1}")


def _damaged(path: Path, reason: str) -> SesamError:
    return SesamError(f"{path} is damaged: {reason}. Delete {path_to_delete(path)} and run `dvc repro`.")
