"""What `evaluate` and `evaluate_labels` found, and the summary of it: the JSON files in metrics.

They come by git, which merges them and keeps those of older runs, so each is checked where it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from sesam.artifacts.atomic_io import read_json
from sesam.errors import SesamError
from sesam.paths import METRICS

Number = Annotated[float, Field(allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Matrix = list[list[Count]]
PerSet = TypeVar("PerSet")

_STRICT = ConfigDict(extra="forbid", strict=True)


@with_config(_STRICT)
class _Network(TypedDict):
    mIoU: Score
    pixel_accuracy: Score
    classes: dict[str, Score]
    confusion: Matrix
    loss: list[Annotated[tuple[Count, Number], Field(strict=False)]]  # JSON has no tuples


@with_config(_STRICT)
class _LabelScores(TypedDict):
    precision: Score
    recall: Score
    f1: Score
    coverage: Score
    mIoU: Score


@with_config(_STRICT)
class _ClassScores(TypedDict):
    precision: Score
    recall: Score
    IoU: Score
    unlabeled: Score


@with_config(_STRICT)
class _LabelSets(TypedDict, Generic[PerSet]):
    weak: PerSet
    predictions: PerSet
    sam: PerSet
    merged: PerSet


@with_config(_STRICT)
class _Outcomes(TypedDict):
    kept: Count
    low_coverage: Count
    oversized: Count
    conflict: Count


@with_config(_STRICT)
class _Contested(TypedDict):
    correct: Count
    wrong: Count
    weak: Count
    unknown: Count


# names with a space: written as a call
_Sources = TypedDict("_Sources", {"none": Count, "weak label": Count, "SAM": Count, "confident prediction": Count})
with_config(_STRICT)(_Sources)


@with_config(_STRICT)
class _Labels(TypedDict):
    scores: _LabelSets[_LabelScores]
    classes: _LabelSets[dict[str, _ClassScores]]
    components: dict[str, _Outcomes]
    contested: _Contested
    sources: _Sources
    ranking: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None
    confusion: _LabelSets[Matrix]


@with_config(ConfigDict(strict=True))
class _Summary(TypedDict):  # the networks' scores stand in it too
    hours: Number | None
    of_fine: Number | None


_NETWORK, _LABELS, _SUMMARY = TypeAdapter(_Network), TypeAdapter(_Labels), TypeAdapter(_Summary)


Metrics = dict[str, Any]


def read_metrics(rounds: Iterable[str], classes: Sequence[str]) -> tuple[dict[str, Metrics], dict[str, Metrics]]:
    """What was found of the teacher and each round's student, and of each round's labels, by name; see below."""
    return (
        {name: read_network_metrics(METRICS / "networks" / f"{name}.json", classes) for name in ("teacher", *rounds)},
        {name: read_label_metrics(METRICS / "labels" / f"{name}.json", classes) for name in rounds},
    )


def read_network_metrics(path: Path, classes: Sequence[str]) -> Metrics:
    """What `evaluate` found of a network; SesamError if the file is anything else, or of other classes."""
    found = _read(path, _NETWORK)
    _check(path, classes, [found["classes"]], [found["confusion"]])
    return found


def read_label_metrics(path: Path, classes: Sequence[str]) -> Metrics:
    """What `evaluate_labels` found of a round; SesamError if the file is anything else, or of other classes."""
    found = _read(path, _LABELS)
    _check(path, classes, [*found["classes"].values(), found["components"]], found["confusion"].values())
    return found


def read_summary(path: Path) -> Metrics:
    """What `summarize` wrote of the cost of the labels; SesamError if it is not there, or anything else."""
    return _read(path, _SUMMARY)


def _read(path: Path, expected: TypeAdapter[Any]) -> Metrics:
    try:
        found: Metrics = expected.validate_python(read_json(path))
    except ValidationError as problem:
        (first, *_) = problem.errors()
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise _not_of_this_run(path, f"{where}: {first['msg']}") from None
    return found


def _check(
    path: Path, classes: Sequence[str], by_class: Iterable[Metrics], matrices: Iterable[list[list[int]]]
) -> None:
    if any(list(one) != list(classes) for one in by_class):
        raise _not_of_this_run(path, f"expected are the classes {', '.join(classes)}")
    count = len(classes)
    if any([len(row) for row in one] != [count + 1] * count for one in matrices):
        raise _not_of_this_run(path, f"expected are confusion matrices of {count} rows and {count + 1} columns")


def _not_of_this_run(path: Path, reason: str) -> SesamError:
    return SesamError(f"{path} is not of this run ({reason}). Run `dvc repro`.")
