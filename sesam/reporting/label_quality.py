"""A round's label sets against fine labels, its components by outcome, and its images ranked for review."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import iadd
from typing import Any, Self

import numpy as np
from scipy.stats import spearmanr

from sesam.artifacts.atomic_io import csv_path, csv_text
from sesam.artifacts.component_records import Outcome, Selected, read_selected
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label, load_label, load_predictions
from sesam.artifacts.sources import SAM, SOURCE_NAMES, load_pseudo_label
from sesam.artifacts.supervision import with_kinds
from sesam.artifacts.thresholds import load_threshold
from sesam.execution.parallel import map_images
from sesam.geometry.rle import rle_to_mask
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.params import KINDS, Kind, Params, TeacherParams
from sesam.paths import WEAK_LABELS, round_dir
from sesam.scores import class_scores, confusion_matrix, label_scores

LABEL_SETS = ("weak", "confident", "sam", "pseudo_labels")  # confident: the teacher's predictions; sam: SAM's pixels
CONTESTED_OUTCOMES = ("correct", "wrong", "weak", "unknown")  # of a pixel in kept masks of two classes


@dataclass
class LabelQuality:
    """Sums over training images.

    matrices: the confusion of each of LABEL_SETS with the fine labels, (4, K, K + 1) int64, without the images that
    were given theirs. outcomes: components by (class, outcome). contested: pixels by CONTESTED_OUTCOMES. images: by
    kind. sources: pixels by kind and source. ranking: of each image its id and `review_priority`. errors: of each, the
    share of finely labeled pixels without their label, or None.
    """

    matrices: np.ndarray
    outcomes: Counter[tuple[int, Outcome]]
    contested: Counter[str]
    images: Counter[Kind]
    sources: Counter[tuple[Kind, int]]
    ranking: list[dict[str, Any]]
    errors: list[float | None]

    def add(self, other: Self) -> None:
        for name, value in vars(other).items():
            setattr(self, name, iadd(getattr(self, name), value))


def evaluate_all(manifest: Manifest, params: Params, round_name: str) -> LabelQuality:
    """`evaluate_image` summed over all training images."""
    num_classes = len(manifest.classes)
    matrices = np.zeros((len(LABEL_SETS), num_classes, num_classes + 1), np.int64)
    total = LabelQuality(matrices, Counter(), Counter(), Counter(), Counter(), [], [])
    work = partial(evaluate_image, round_name=round_name, classes=manifest.classes, config=params.teacher)
    images = with_kinds(manifest.train)
    map_images(work, images, params.runtime, f"evaluate_labels {round_name}", collect=total.add)
    return total


def evaluate_image(
    record_and_kind: tuple[ImageRecord, Kind], round_name: str, classes: Sequence[str], config: TeacherParams
) -> LabelQuality:
    """The quality of a training image's labels. config: which predictions are confident."""
    (record, kind), num_classes = record_and_kind, len(classes)
    pseudo_label, sources = load_pseudo_label(round_name, record, num_classes)
    predicted, confidence = load_predictions(round_name, record, num_classes)
    weak = load_label(WEAK_LABELS, record, num_classes)
    fine = load_fine_label("train", record, num_classes)
    if kind == "fine":
        fine = np.full_like(fine, IGNORE_INDEX)  # nothing to be scored: it is the pseudo-label
    selected = read_selected(round_dir(round_name, "selected") / f"{record.id}.json", record, num_classes)
    confident = confident_labels(predicted, confidence, load_threshold(round_name, kind, classes, config))
    label_sets = (weak, confident, np.where(sources == SAM, pseudo_label, IGNORE_INDEX), pseudo_label)
    contested, known = contested_pixels(selected, pseudo_label.shape), fine != IGNORE_INDEX
    return LabelQuality(
        matrices=np.stack([confusion_matrix(fine, labels, num_classes) for labels in label_sets]),
        outcomes=Counter((component.class_id, component.outcome) for component in selected),
        contested=count_contested(contested, pseudo_label, weak, fine),
        images=Counter([kind]),
        sources=Counter({(kind, k): int(count) for k, count in enumerate(np.bincount(sources.ravel()))}),
        ranking=[{"id": record.id} | review_priority(pseudo_label, weak, predicted, contested, selected)],
        errors=[float((pseudo_label != fine)[known].mean()) if known.any() else None],
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


def count_contested(
    contested: np.ndarray, pseudo_label: np.ndarray, weak: np.ndarray, fine: np.ndarray
) -> Counter[str]:
    """What became of the contested pixels, by CONTESTED_OUTCOMES; contested (H, W) bool, the others (H, W) uint8."""
    pseudo_label, weak, fine = pseudo_label[contested], weak[contested], fine[contested]
    conditions = [weak != IGNORE_INDEX, fine == IGNORE_INDEX, pseudo_label == fine]
    return Counter(np.select(conditions, ["weak", "unknown", "correct"], "wrong").tolist())


def review_priority(
    pseudo_label: np.ndarray,
    weak: np.ndarray,
    predicted: np.ndarray,
    contested: np.ndarray,
    selected: Sequence[Selected],
) -> dict[str, Any]:
    """How much of an image's pseudo-label needs a look, without any fine label; a row of ranking.csv.

    pseudo_label, weak, predicted (the teacher's classes): (H, W) uint8, 255 = none. contested: see `contested_pixels`.
    review_priority: the share of pixels that are unlabeled, or whose label no annotator drew and the teacher
    contradicts, or masks of two classes hold. components, rejected: how many, and for how many no mask was kept.
    """
    unlabeled, drawn = pseudo_label == IGNORE_INDEX, weak != IGNORE_INDEX
    contradicted = ~unlabeled & ~drawn & (predicted != IGNORE_INDEX) & (predicted != pseudo_label)
    contested = contested & ~drawn
    pixels = {"unlabeled": unlabeled, "contradicted": contradicted, "contested": contested}
    return {
        "review_priority": round(float((unlabeled | contradicted | contested).mean()), 5),
        **{name: round(float(mask.mean()), 5) for name, mask in pixels.items()},
        "components": len(selected),
        "rejected": sum(not component.kept for component in selected),
    }


def ranking_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `review_priority` as CSV, the highest priority first."""
    ranked = sorted(rows, key=lambda row: (-row["review_priority"], row["id"]))
    return csv_text(list(rows[0]), [list((row | {"id": csv_path(row["id"])}).values()) for row in ranked])


def rank_correlation(scores: Sequence[float], errors: Sequence[float | None]) -> float | None:
    """Spearman's, over the images whose error is known; None if there are not three images that differ."""
    pairs = [(score, error) for score, error in zip(scores, errors, strict=True) if error is not None]
    if len(pairs) < 3 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return None
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 4)


def label_metrics(quality: LabelQuality, classes: Sequence[str]) -> dict[str, Any]:
    """A round's label quality by names, ready for JSON.

    scores: of each label set. class_scores: of each label set and class. component_outcomes: of each class.
    contested_pixels, by outcome. images: by kind. sources: pixels of each kind, by source. ranking_spearman:
    `rank_correlation` of the ranking's score with the true error. confusion_matrix: of each label set. See
    `label_scores`, `class_scores`.
    """
    matrices = dict(zip(LABEL_SETS, quality.matrices, strict=True))
    return {
        "scores": {name: label_scores(matrix) for name, matrix in matrices.items()},
        "class_scores": {
            name: dict(zip(classes, class_scores(matrix), strict=True)) for name, matrix in matrices.items()
        },
        "component_outcomes": {
            name: {str(outcome): quality.outcomes[k, outcome] for outcome in Outcome} for k, name in enumerate(classes)
        },
        "contested_pixels": {outcome: quality.contested[outcome] for outcome in CONTESTED_OUTCOMES},
        "images": {kind: quality.images[kind] for kind in KINDS if quality.images[kind]},
        "sources": {
            kind: {name: quality.sources[kind, k] for k, name in enumerate(SOURCE_NAMES)}
            for kind in KINDS
            if quality.images[kind]
        },
        "ranking_spearman": rank_correlation([row["review_priority"] for row in quality.ranking], quality.errors),
        "confusion_matrix": {name: matrix.tolist() for name, matrix in matrices.items()},
    }
