"""A round's label sets against fine labels, and its components by outcome."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from sesam.artifacts.component_records import read_selected
from sesam.artifacts.manifest import Dataset, ImageRecord, load_fine_label, load_label, load_predictions
from sesam.artifacts.sources import SAM, SOURCE_NAMES, load_pseudo_label
from sesam.execution.parallel import map_images
from sesam.geometry.rle import rle_to_mask
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.params import Params
from sesam.paths import WEAK_LABELS, round_dir
from sesam.scores import class_scores, confusion_matrix, label_scores

FATES = ("kept", "missed", "spilled", "conflict")  # a component's: its mask was kept, or why none was


CONTESTED_OUTCOMES = ("right", "wrong", "weak", "unknown")  # of a pixel that kept masks of two classes claimed


class LabelSets(NamedTuple):
    """The label sets of a training image in a round, each (H, W) uint8 with 255 = unlabeled.

    predictions: the teacher's confident ones. sam: the pixels of the merged label that are SAM's.
    """

    weak: np.ndarray
    predictions: np.ndarray
    sam: np.ndarray
    merged: np.ndarray


def contested_pixels(selected: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> np.ndarray:
    """Pixels that kept masks of more than one class claim, (H, W) bool."""
    claimed, twice = np.full(shape, IGNORE_INDEX, np.uint8), np.zeros(shape, bool)
    for component in selected:
        if component["candidate"] is not None:
            mask = rle_to_mask(component["rle"], shape)
            twice |= mask & (claimed != IGNORE_INDEX) & (claimed != component["class"])
            claimed[mask] = component["class"]
    return twice


def count_outcomes(selected: Sequence[Mapping[str, Any]]) -> Counter[tuple[int, str]]:
    """How many components of each (class, fate)."""
    return Counter((one["class"], one["refused"] if one["candidate"] is None else "kept") for one in selected)


def review_priority(
    merged: np.ndarray,
    weak: np.ndarray,
    predicted: np.ndarray,
    claimed: np.ndarray,
    selected: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """How much of an image's merged label needs a look, without any fine label; a row of ranking.csv.

    merged, weak, predicted (the teacher's classes): (H, W) uint8, 255 = none. claimed: see `contested_pixels`.
    score: the share of pixels that are unlabeled, or whose label no annotator drew and the teacher contradicts, or
    masks of two classes claimed. components, refused: how many, and for how many no mask was kept.
    """
    unlabeled, drawn = merged == IGNORE_INDEX, weak != IGNORE_INDEX
    contradicted = ~unlabeled & ~drawn & (predicted != IGNORE_INDEX) & (predicted != merged)
    shares = {"unlabeled": unlabeled, "contradicted": contradicted, "contested": claimed & ~drawn}
    return {
        "score": round(float((unlabeled | contradicted | (claimed & ~drawn)).mean()), 5),
        **{name: round(float(pixels.mean()), 5) for name, pixels in shares.items()},
        "components": len(selected),
        "refused": sum(one["candidate"] is None for one in selected),
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


def evaluate_images(items: Sequence[ImageRecord], classes: int, name: str, threshold: float) -> dict[str, Any]:
    """What a round made of some images.

    matrices: of each label set its confusion with the fine labels, (K, K + 1) int64. fates: components by
    (class, fate). claims: pixels claimed by two classes by what became of them. sources: (4,) int64 pixels. doubts: of
    each image, see `review_priority`. errors: of each, the share of finely labeled pixels without their label, or None.
    """
    matrices: dict[str, Any] = {}
    counts: Counter[tuple[int, str]] = Counter()
    claims, pixels = Counter(dict.fromkeys(CONTESTED_OUTCOMES, 0)), np.zeros(len(SOURCE_NAMES), np.int64)
    doubts, errors = [], []
    for item in items:
        merged, sources = load_pseudo_label(name, item, classes)
        predicted, confidence = load_predictions(name, item, classes)
        from_sam = np.where(sources == SAM, merged, np.uint8(IGNORE_INDEX))
        confident = confident_labels(predicted, confidence, threshold)
        sets = LabelSets(load_label(WEAK_LABELS, item, classes), confident, from_sam, merged)
        selected = read_selected(round_dir(name, "selected") / f"{item.id}.json", item, classes)
        counts += count_outcomes(selected)
        claimed = contested_pixels(selected, merged.shape)
        doubts.append({"id": item.id} | review_priority(merged, sets.weak, predicted, claimed, selected))
        pixels = pixels + np.bincount(sources.ravel(), minlength=len(SOURCE_NAMES))
        fine = load_fine_label("train", item, classes)
        known, right, drawn = fine != IGNORE_INDEX, merged == fine, sets.weak != IGNORE_INDEX
        outcomes = (known & right & ~drawn, known & ~right & ~drawn, drawn, ~known & ~drawn)
        claims.update(
            {name: int((claimed & such).sum()) for name, such in zip(CONTESTED_OUTCOMES, outcomes, strict=True)}
        )
        errors.append(float((merged != fine)[known].mean()) if known.any() else None)
        if item.fine:
            for part, labels in sets._asdict().items():
                matrices[part] = matrices.get(part, 0) + confusion_matrix(fine, labels, classes)
    return {
        "matrices": matrices,
        "fates": counts,
        "claims": claims,
        "sources": pixels,
        "doubts": doubts,
        "errors": errors,
    }


def evaluate_all(data: Dataset, params: Params, name: str) -> dict[str, Any]:
    """`evaluate_images` over all training images."""
    # summed within a batch, so that however many images there are, at most 128 matrices of a set wait
    size = -(-len(data.train) // 128)
    batches = [data.train[start : start + size] for start in range(0, len(data.train), size)]
    work = partial(
        evaluate_images, classes=len(data.classes), name=name, threshold=params.teacher_labels.confidence_threshold
    )
    title = f"evaluate_labels {name}" + ("" if size == 1 else f", {size} images at a time")
    parts = map_images(work, batches, params.runtime, title)
    nothing = np.zeros((len(data.classes), len(data.classes) + 1), np.int64)
    return {
        "matrices": {
            label_set: sum((part["matrices"].get(label_set, 0) for part in parts), start=nothing)
            for label_set in LabelSets._fields
        },
        **{key: sum((part[key] for part in parts), start=Counter()) for key in ("fates", "claims")},
        "sources": sum(part["sources"] for part in parts),
        **{key: [one for part in parts for one in part[key]] for key in ("doubts", "errors")},
    }


def label_metrics(found: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """What `evaluate_images` found, by names, ready for JSON.

    scores: of each label set. classes: of each label set and class. components: of each class, by fate.
    contested, sources: pixels. confusion: the matrices. See `label_scores`, `class_scores`. ranking: Spearman's
    correlation of the ranking's score with the true error, None if there are not three images that differ.
    """
    matrices = found["matrices"]
    return {
        "scores": {part: label_scores(matrix) for part, matrix in matrices.items()},
        "classes": {part: dict(zip(classes, class_scores(matrix), strict=True)) for part, matrix in matrices.items()},
        "components": {name: {fate: found["fates"][k, fate] for fate in FATES} for k, name in enumerate(classes)},
        "contested": {kind: found["claims"][kind] for kind in CONTESTED_OUTCOMES},
        "sources": dict(zip(SOURCE_NAMES, map(int, found["sources"]), strict=True)),
        "ranking": rank_correlation([row["score"] for row in found["doubts"]], found["errors"]),
        "confusion": {part: matrix.tolist() for part, matrix in matrices.items()},
    }
