"""An image's components with their prompts, candidates and selected masks: the JSON files between the stages.

Each component has a number, by which the files of one image are matched.
They also come by `dvc pull`, so each is checked where it is read: pycocotools hangs on, or crashes with, run lengths
that do not fit their image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from sesam.artifacts.archives import path_to_delete
from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.manifest import ImageRecord
from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_counts

Number = Annotated[float, Field(allow_inf_nan=False)]
ClassId = Annotated[int, Field(ge=0, le=254)]
ComponentNumber = Annotated[int, Field(ge=1)]
RunLengths = Annotated[str, Field(pattern="^[0-o]+$")]  # as COCO compresses them
Points = Annotated[list[Annotated[list[int], Field(min_length=2, max_length=2)]], Field(min_length=1)]
Box = Annotated[list[int], Field(min_length=4, max_length=4)]


_STRICT = ConfigDict(extra="forbid", strict=True)


@with_config(_STRICT)
class _Document(TypedDict):
    id: str
    height: int
    width: int


@with_config(_STRICT)
class _Candidate(TypedDict):
    iou: Number
    rle: RunLengths


# `class` is a word of Python: these two are written as calls
_Prompt = TypedDict(
    "_Prompt",
    {
        "number": ComponentNumber,
        "class": ClassId,
        "rle": RunLengths,
        "points": NotRequired[Points],
        "box": NotRequired[Box],
    },
)
_Selected = TypedDict(
    "_Selected",
    {
        "number": ComponentNumber,
        "class": ClassId,
        "candidate": int | None,
        "iou": Number | None,
        "rle": RunLengths,
        "refused": Literal["missed", "spilled", "conflict"] | None,
    },
)
for _kind in (_Prompt, _Selected):
    with_config(_STRICT)(_kind)


class _Prompts(_Document):
    prompt: Literal["points", "box", "mask"]
    components: list[_Prompt]


@with_config(_STRICT)
class _Offered(TypedDict):
    number: ComponentNumber
    candidates: Annotated[list[_Candidate], Field(min_length=1)]


class _Masks(_Document):
    components: list[_Offered]


class _Selection(_Document):
    components: list[_Selected]


_PROMPTS, _MASKS, _SELECTION = TypeAdapter(_Prompts), TypeAdapter(_Masks), TypeAdapter(_Selection)


def read_prompts(path: Path, item: ImageRecord, classes: int | None = None) -> dict[str, Any]:
    """What `prompts` wrote of an image: its prompt's kind and its components; SesamError if it is anything else.

    classes: how many there are, for who reads a component's class.
    """
    document = _read(path, item, _PROMPTS)
    if classes is not None:
        _check_classes(path, document["components"], classes)
    wanted = {"points": "points", "box": "box"}.get(document["prompt"])
    for component in document["components"]:
        if wanted and wanted not in component:
            raise _damaged(path, f"component {component['number']} has no {wanted}")
        if wanted == "points" and not _inside(component["points"], item):
            raise _damaged(path, f"component {component['number']} has points outside the image")
        if wanted == "box" and not _is_box(component["box"], item):
            raise _damaged(path, f"component {component['number']} has no box in the image")
    return document


def read_candidates(
    path: Path, item: ImageRecord, prompts: Sequence[Mapping[str, Any]]
) -> dict[int, list[dict[str, Any]]]:
    """What `sam_masks` wrote of an image: the candidates by component number.

    SesamError if the file is anything else, or not of the components in `prompts`.
    """
    candidates = {one["number"]: one["candidates"] for one in _read(path, item, _MASKS)["components"]}
    if candidates.keys() != {one["number"] for one in prompts}:
        raise _damaged(path, "it is not of the components that were prompted")
    return candidates


def read_selected(path: Path, item: ImageRecord, classes: int) -> list[dict[str, Any]]:
    """What `select_masks` wrote of an image, its components; SesamError if it is anything else."""
    components: list[dict[str, Any]] = _read(path, item, _SELECTION)["components"]
    _check_classes(path, components, classes)
    return components


def _read(path: Path, item: ImageRecord, expected: TypeAdapter[Any]) -> dict[str, Any]:
    try:
        document: dict[str, Any] = expected.validate_python(read_json(path))
    except ValidationError as problem:
        (first, *_) = problem.errors()
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise _damaged(path, f"{where}: {first['msg']}") from None
    if (document["id"], document["height"], document["width"]) != (item.id, item.height, item.width):
        raise _damaged(path, f"it is of another image than {item.id}, {item.width}x{item.height}")
    if len({component["number"] for component in document["components"]}) < len(document["components"]):
        raise _damaged(path, "two components have one number")
    pixels = item.height * item.width
    for rle in _every_rle(document):
        counts = rle_to_counts(rle)
        if counts.min() < 0 or counts.max() > pixels or counts.sum() != pixels:  # each, or their sum might wrap around
            raise _damaged(path, f"run lengths do not fit {item.width}x{item.height} pixels")
    return document


def _every_rle(document: dict[str, Any]) -> list[str]:
    return [one["rle"] for component in document["components"] for one in component.get("candidates", [component])]


def _inside(points: list[list[int]], item: ImageRecord) -> bool:
    return all(0 <= x < item.width and 0 <= y < item.height for x, y in points)


def _is_box(box: list[int], item: ImageRecord) -> bool:
    left, top, right, bottom = box
    return 0 <= left < right <= item.width and 0 <= top < bottom <= item.height


def _check_classes(path: Path, components: Sequence[Mapping[str, Any]], classes: int) -> None:
    if unknown := [component["class"] for component in components if component["class"] >= classes]:
        raise _damaged(path, f"class {unknown[0]}, where classes are 0 to {classes - 1}")


def _damaged(path: Path, reason: str) -> SesamError:
    return SesamError(f"{path} is damaged: {reason}. Delete {path_to_delete(path)} and run `dvc repro`.")
