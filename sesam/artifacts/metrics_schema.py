"""The JSON files in metrics: what `evaluate` and `evaluate_labels` wrote.

They come by git, which merges them and keeps those of older runs, so each is checked where it is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from sesam.artifacts.atomic_io import read_json
from sesam.errors import SesamError, describe_validation_error
from sesam.params import Kind
from sesam.paths import METRICS

Metrics = dict[str, Any]
MetricsByName = Mapping[str, Metrics]  # by network or round

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Matrix = list[list[Count]]
LossStep = Annotated[tuple[Count, Annotated[float, Field(allow_inf_nan=False)]], Field(strict=False)]  # a list in JSON
# Dictionaries with exactly the keys of their Literal
Value = TypeVar("Value")
PerLabelSet = Annotated[dict[Literal["weak", "confident", "sam", "pseudo_labels"], Value], Field(min_length=4)]
LabelScores = Annotated[dict[Literal["precision", "recall", "f1", "labeled", "mIoU"], Score], Field(min_length=5)]
ClassScores = Annotated[dict[Literal["precision", "recall", "IoU", "unlabeled"], Score], Field(min_length=4)]
Outcomes = Annotated[dict[Literal["kept", "low_coverage", "oversized"], Count], Field(min_length=3)]
ContestedPixels = Annotated[dict[Literal["correct", "wrong", "weak", "unknown"], Count], Field(min_length=4)]
Sources = Annotated[dict[Literal["none", "weak", "sam", "confident", "fine"], Count], Field(min_length=5)]


@with_config(ConfigDict(extra="forbid", strict=True))
class _NetworkMetrics(TypedDict):
    mIoU: Score
    pixel_accuracy: Score
    class_iou: dict[str, Score]
    confusion_matrix: Matrix
    loss: list[LossStep]
    evaluation: Annotated[str, Field(max_length=1000)]


@with_config(ConfigDict(extra="forbid", strict=True))
class _LabelMetrics(TypedDict):
    scores: PerLabelSet[LabelScores]
    class_scores: PerLabelSet[dict[str, ClassScores]]
    component_outcomes: dict[str, Outcomes]
    contested_pixels: ContestedPixels
    images: dict[Kind, Count]
    sources: dict[Kind, Sources]
    ranking_spearman: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None
    confusion_matrix: PerLabelSet[Matrix]


def read_metrics(rounds: Iterable[str], classes: Sequence[str]) -> tuple[MetricsByName, MetricsByName]:
    """The metrics of the baseline and each round's student, and those of each round's labels; SesamError as below."""
    return (
        {name: read_network_metrics(METRICS / "networks" / f"{name}.json", classes) for name in ("baseline", *rounds)},
        {name: read_label_metrics(METRICS / "labels" / f"{name}.json", classes) for name in rounds},
    )


def read_network_metrics(path: Path, classes: Sequence[str]) -> Metrics:
    """What `evaluate` wrote for a network; SesamError if the file has another form or other classes."""
    metrics = _read(path, TypeAdapter(_NetworkMetrics))
    _check_classes(path, classes, [metrics["class_iou"]], [metrics["confusion_matrix"]])
    return metrics


def read_label_metrics(path: Path, classes: Sequence[str]) -> Metrics:
    """What `evaluate_labels` wrote for a round; SesamError if the file has another form or other classes."""
    metrics = _read(path, TypeAdapter(_LabelMetrics))
    by_class = [*metrics["class_scores"].values(), metrics["component_outcomes"]]
    _check_classes(path, classes, by_class, metrics["confusion_matrix"].values())
    if metrics["images"].keys() != metrics["sources"].keys():
        raise _not_of_this_run(path, "images and sources are of other kinds")
    return metrics


def read_annotation_counts(path: Path) -> dict[str, int]:
    """How many of annotators' shapes `weak_labels` drew, and how many left no pixel, by kind; SesamError as above."""
    counts: dict[str, int] = _read(path, TypeAdapter(dict[str, Count]))
    return counts


def describe_images(images: Mapping[str, int]) -> str:
    """The training images by kind: "60 training images: 20 with fine labels, 40 without annotation"."""
    words = {"none": "without annotation", "coarse": "with coarse polygons", "box": "with boxes"}
    parts = {kind: words.get(kind, f"with {kind} labels") for kind in images}
    total = f"{sum(images.values())} training images"
    if len(images) == 1:
        return f"{total} {next(iter(parts.values()))}"
    return f"{total}: " + ", ".join(f"{count} {parts[kind]}" for kind, count in images.items())


def _read(path: Path, expected: TypeAdapter[Any]) -> Metrics:
    try:
        return expected.validate_python(read_json(path))
    except ValidationError as error:
        raise _not_of_this_run(path, describe_validation_error(error)[0]) from None


def _check_classes(
    path: Path, classes: Sequence[str], by_class: Iterable[Metrics], matrices: Iterable[list[list[int]]]
) -> None:
    if any(list(scores) != list(classes) for scores in by_class):
        raise _not_of_this_run(path, f"expected the classes {', '.join(classes)}")
    num_classes = len(classes)
    if any([len(row) for row in matrix] != [num_classes + 1] * num_classes for matrix in matrices):
        raise _not_of_this_run(path, f"expected confusion matrices of {num_classes} rows and {num_classes + 1} columns")


def _not_of_this_run(path: Path, reason: str) -> SesamError:
    return SesamError(f"{path} is not from this run ({reason}). Run `dvc repro`.")
