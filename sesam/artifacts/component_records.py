"""The JSON files between the stages: an image's components, by number, with prompts, candidates and selected masks.

The files also come by `sesam pull`, so each is checked where it is read: pycocotools hangs on, or crashes with, run
lengths that do not fit their image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from sesam.artifacts.archives import damaged_artifact
from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.drawn_prompts import Box, ClassId, Point
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import describe_validation_error
from sesam.geometry.rle import rle_to_counts

Number = Annotated[int, Field(ge=1)]
Rle = Annotated[str, Field(pattern="^[0-o]+$")]  # as COCO compresses them
Finite = Annotated[float, Field(allow_inf_nan=False)]
PromptType = Literal["points", "box", "mask", "concept"]


class Outcome(StrEnum):
    """What became of a component: a mask was kept, or why the candidate with the highest score was not."""

    KEPT = "kept"
    LOW_COVERAGE = "low_coverage"
    OVERSIZED = "oversized"


@dataclass(frozen=True)
class Component:
    """A component and its prompt: points, a box, or without both its mask; and background points, if any.

    drawn_box: annotators drew the box, and the component is its inside. concept: the prompt is this text, the component
    all that annotators gave a class, perhaps nothing, and exemplars are boxes of what is meant.
    """

    number: Number
    class_id: ClassId
    rle: Rle
    points: Annotated[list[Point], Field(min_length=1)] | None = None
    box: Box | None = None
    background_points: Annotated[list[Point], Field(min_length=1)] | None = None
    drawn_box: bool = False
    concept: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    exemplars: Annotated[list[Box], Field(min_length=1)] | None = None

    @property
    def prompt_type(self) -> PromptType:
        if self.concept is not None:
            return "concept"
        return "points" if self.points is not None else "box" if self.box is not None else "mask"


@dataclass(frozen=True)
class Candidate:
    """One of SAM's masks for a component."""

    predicted_iou: Finite
    rle: Rle


@dataclass(frozen=True)
class Selected:
    """A component's kept mask, or if none was kept, the component's own.

    candidate_index: of the kept one. score: its, see `score_candidate`.
    """

    number: Number
    class_id: ClassId
    candidate_index: Annotated[int | None, Field(alias="candidate")]
    score: Finite | None
    rle: Rle
    outcome: Outcome

    @property
    def kept(self) -> bool:
        return self.outcome is Outcome.KEPT


@dataclass(frozen=True)
class _Candidates:
    number: Number
    candidates: Annotated[list[Candidate], Field(min_length=1)]


_Kind = TypeVar("_Kind", Component, _Candidates, Selected)


@with_config(ConfigDict(extra="forbid", strict=True))  # also of the records in it
@dataclass(frozen=True, kw_only=True)
class _Document(Generic[_Kind]):
    id: str
    height: int
    width: int
    prompt_type: Annotated[PromptType | None, Field(alias="prompt")] = None
    components: list[_Kind]


_PROMPTS = TypeAdapter(_Document[Component])
_CANDIDATES = TypeAdapter(_Document[_Candidates])
_SELECTED = TypeAdapter(_Document[Selected])


def write_prompts(path: Path, record: ImageRecord, prompt_type: PromptType, components: list[Component]) -> None:
    _write(path, record, _PROMPTS, components, prompt_type)


def write_candidates(path: Path, record: ImageRecord, candidates: Mapping[int, list[Candidate]]) -> None:
    """candidates: by component number."""
    _write(path, record, _CANDIDATES, [_Candidates(*prompted) for prompted in candidates.items()])


def write_selected(path: Path, record: ImageRecord, selected: list[Selected]) -> None:
    _write(path, record, _SELECTED, selected)


def read_prompts(path: Path, record: ImageRecord, num_classes: int = 255) -> list[Component]:
    """An image's components as `prompts` wrote them; SesamError if the file is anything else."""
    document = _read(path, record, _PROMPTS, num_classes)
    for component in document.components:
        is_box = component.drawn_box and document.prompt_type != "concept"
        if component.prompt_type != ("box" if is_box else document.prompt_type):
            raise damaged_artifact(path, f"component {component.number} is not prompted with {document.prompt_type}")
        if any(
            not (0 <= x < record.width and 0 <= y < record.height)
            for x, y in (*(component.points or ()), *(component.background_points or ()))
        ):
            raise damaged_artifact(path, f"component {component.number} has points outside the image")
        for left, top, right, bottom in (component.box or (0, 0, 1, 1), *(component.exemplars or ())):
            if not (0 <= left < right <= record.width and 0 <= top < bottom <= record.height):
                raise damaged_artifact(path, f"component {component.number} has no box in the image")
    return document.components


def read_candidates(path: Path, record: ImageRecord, components: Sequence[Component]) -> dict[int, list[Candidate]]:
    """Candidates by component number, as `sam_masks` wrote them for `components`; SesamError for any other file."""
    candidates = {prompted.number: prompted.candidates for prompted in _read(path, record, _CANDIDATES).components}
    if candidates.keys() != {component.number for component in components}:
        raise damaged_artifact(path, "it is not of the components that were prompted")
    return candidates


def read_selected(
    path: Path, record: ImageRecord, num_classes: int, components: Sequence[Component] | None = None
) -> list[Selected]:
    """An image's components as `select_masks` wrote them; SesamError if the file is anything else.

    components: those that were prompted; the file must have the same, in the same order.
    """
    selected = _read(path, record, _SELECTED, num_classes).components
    if components is not None and [(x.number, x.class_id) for x in selected] != [
        (x.number, x.class_id) for x in components
    ]:
        raise damaged_artifact(path, "it is not of the components that were prompted")
    for component in selected:
        if not component.kept == (component.candidate_index is not None) == (component.score is not None):
            raise damaged_artifact(
                path, f"component {component.number} is {component.outcome}, mask {component.candidate_index}"
            )
    return selected


def _write(
    path: Path,
    record: ImageRecord,
    adapter: TypeAdapter[Any],
    components: list[_Kind],
    prompt_type: PromptType | None = None,
) -> None:
    document = _Document(
        id=record.id, height=record.height, width=record.width, prompt_type=prompt_type, components=components
    )
    write_json(path, adapter.dump_python(document, mode="json", by_alias=True, exclude_defaults=True))


def _read(
    path: Path, record: ImageRecord, adapter: TypeAdapter[_Document[_Kind]], num_classes: int = 255
) -> _Document[_Kind]:
    try:
        document = adapter.validate_json(read_bytes(path))
    except ValidationError as problem:
        raise damaged_artifact(path, describe_validation_error(problem)[0]) from None
    if (document.id, document.height, document.width) != (record.id, record.height, record.width):
        raise damaged_artifact(path, f"it is of another image than {record.id}, {record.width}x{record.height}")
    if len({component.number for component in document.components}) < len(document.components):
        raise damaged_artifact(path, "two components have one number")
    pixels = record.height * record.width
    for component in document.components:
        if not isinstance(component, _Candidates) and component.class_id >= num_classes:
            raise damaged_artifact(path, f"class {component.class_id}, where classes are 0 to {num_classes - 1}")
        for mask in component.candidates if isinstance(component, _Candidates) else (component,):
            counts = rle_to_counts(mask.rle)
            # each, or their sum might wrap around
            if counts.min() < 0 or counts.max() > pixels or counts.sum() != pixels:
                raise damaged_artifact(path, f"run lengths do not fit {record.width}x{record.height} pixels")
    return document
