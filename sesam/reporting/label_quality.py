"""A round's label sets against fine labels, its components by outcome, and its images ranked for review."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from sesam.artifacts.component_records import Outcome, Selected, read_selected
from sesam.artifacts.manifest import Dataset, ImageRecord, load_fine_label, load_label, load_predictions
from sesam.artifacts.sources import SAM, SOURCE_NAMES, load_pseudo_label
from sesam.execution.parallel import map_images
from sesam.geometry.rle import rle_to_mask
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.params import Params
from sesam.paths import WEAK_LABELS, round_dir
from sesam.scores import class_scores, confusion_matrix, label_scores

CONTESTED_OUTCOMES = ("correct", "wrong", "weak", "unknown")  # of a pixel in kept masks of two classes


@dataclass
class LabelQuality:
    """Sums over training images.

    matrices: the confusion of each label set with the fine labels, (K, K + 1) int64. The sets are weak, predictions
    (the teacher's confident ones), sam (the merged label where it is SAM's) and merged. outcomes: components by
    (class, outcome). contested: pixels by CONTESTED_OUTCOMES. sources: (4,) int64 pixels. ranking: of each image its
    id and `review_priority`. errors: of each, the share of finely labeled pixels without their label, or None.
    """

    matrices: dict[str, np.ndarray]
    outcomes: Counter[tuple[int, Outcome]]
    contested: Counter[str]
    sources: np.ndarray
    ranking: list[dict[str, Any]]
    errors: list[float | None]

    def add(self, other: LabelQuality) -> None:
        for name, matrix in other.matrices.items():
            self.matrices[name] = self.matrices.get(name, 0) + matrix
        self.outcomes += other.outcomes
        self.contested += other.contested
        self.sources = self.sources + other.sources
        self.ranking += other.ranking
        self.errors += other.errors


def evaluate_all(data: Dataset, params: Params, round_name: str) -> LabelQuality:
    """`evaluate_image` summed over all training images."""
    total = LabelQuality({}, Counter(), Counter(), np.zeros(len(SOURCE_NAMES), np.int64), [], [])
    threshold = params.teacher_labels.confidence_threshold
    work = partial(evaluate_image, round_name=round_name, num_classes=len(data.classes), threshold=threshold)
    map_images(work, data.train, params.runtime, f"evaluate_labels {round_name}", collect=total.add)
    return total


def evaluate_image(record: ImageRecord, round_name: str, num_classes: int, threshold: float) -> LabelQuality:
    """The quality of a training image's labels. threshold: γ, of confident predictions."""
    merged, sources = load_pseudo_label(round_name, record, num_classes)
    predicted, confidence = load_predictions(round_name, record, num_classes)
    weak = load_label(WEAK_LABELS, record, num_classes)
    fine = load_fine_label("train", record, num_classes)
    selected = read_selected(round_dir(round_name, "selected") / f"{record.id}.json", record, num_classes)
    label_sets = {
        "weak": weak,
        "predictions": confident_labels(predicted, confidence, threshold),
        "sam": np.where(sources == SAM, merged, np.uint8(IGNORE_INDEX)),
        "merged": merged,
    }
    contested, known = contested_pixels(selected, merged.shape), fine != IGNORE_INDEX
    return LabelQuality(
        matrices={name: confusion_matrix(fine, labels, num_classes) for name, labels in label_sets.items()},
        outcomes=Counter((component.class_id, component.outcome) for component in selected),
        contested=count_contested(contested, merged, weak, fine),
        sources=np.bincount(sources.ravel(), minlength=len(SOURCE_NAMES)),
        ranking=[{"id": record.id} | review_priority(merged, weak, predicted, contested, selected)],
        errors=[float((merged != fine)[known].mean()) if known.any() else None],
    )


def contested_pixels(selected: Sequence[Selected], shape: tuple[int, int]) -> np.ndarray:
    """Pixels in kept masks of more than one class, (H, W) bool."""
    claimed, contested = np.full(shape, IGNORE_INDEX, np.uint8), np.zeros(shape, bool)
    for component in selected:
        if component.kept:
            mask = rle_to_mask(component.rle, shape)
            contested |= mask & (claimed != IGNORE_INDEX) & (claimed != component.class_id)
            claimed[mask] = component.class_id
    return contested


def count_contested(contested: np.ndarray, merged: np.ndarray, weak: np.ndarray, fine: np.ndarray) -> Counter[str]:
    """What became of the contested pixels, by CONTESTED_OUTCOMES; contested (H, W) bool, the others (H, W) uint8."""
    known, correct, drawn = fine != IGNORE_INDEX, merged == fine, weak != IGNORE_INDEX
    outcomes = (known & correct & ~drawn, known & ~correct & ~drawn, drawn, ~known & ~drawn)
    return Counter(
        {name: int((contested & such).sum()) for name, such in zip(CONTESTED_OUTCOMES, outcomes, strict=True)}
    )


def review_priority(
    merged: np.ndarray, weak: np.ndarray, predicted: np.ndarray, contested: np.ndarray, selected: Sequence[Selected]
) -> dict[str, Any]:
    """How much of an image's merged label needs a look, without any fine label; a row of ranking.csv.

    merged, weak, predicted (the teacher's classes): (H, W) uint8, 255 = none. contested: see `contested_pixels`.
    score: the share of pixels that are unlabeled, or whose label no annotator drew and the teacher contradicts, or
    masks of two classes hold. components, refused: how many, and for how many no mask was kept.
    """
    unlabeled, drawn = merged == IGNORE_INDEX, weak != IGNORE_INDEX
    contradicted = ~unlabeled & ~drawn & (predicted != IGNORE_INDEX) & (predicted != merged)
    pixels = {"unlabeled": unlabeled, "contradicted": contradicted, "contested": contested & ~drawn}
    pixels = {"score": np.logical_or.reduce(list(pixels.values())), **pixels}
    return {
        **{name: round(float(where.mean()), 5) for name, where in pixels.items()},
        "components": len(selected),
        "refused": sum(not component.kept for component in selected),
    }


def ranking_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `review_priority` as CSV, the highest score first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (-row["score"], row["id"])))
    return text.getvalue()


def rank_correlation(scores: Sequence[float], errors: Sequence[float | None]) -> float | None:
    """Spearman's, over the images whose error is known."""
    pairs = [(score, error) for score, error in zip(scores, errors, strict=True) if error is not None]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 4)


def label_metrics(quality: LabelQuality, classes: Sequence[str]) -> dict[str, Any]:
    """A round's label quality by names, ready for JSON.

    scores: of each label set. classes: of each label set and class. components: of each class, by outcome.
    contested, sources: pixels. confusion: the matrices. See `label_scores`, `class_scores`. ranking: Spearman's
    correlation of the ranking's score with the true error, None if there are not three images that differ.
    """
    matrices = quality.matrices
    return {
        "scores": {name: label_scores(matrix) for name, matrix in matrices.items()},
        "classes": {name: dict(zip(classes, class_scores(matrix), strict=True)) for name, matrix in matrices.items()},
        "components": {
            name: {str(outcome): quality.outcomes[k, outcome] for outcome in Outcome} for k, name in enumerate(classes)
        },
        "contested": {outcome: quality.contested[outcome] for outcome in CONTESTED_OUTCOMES},
        "sources": dict(zip(SOURCE_NAMES, map(int, quality.sources), strict=True)),
        "ranking": rank_correlation([row["score"] for row in quality.ranking], quality.errors),
        "confusion": {name: matrix.tolist() for name, matrix in matrices.items()},
    }
