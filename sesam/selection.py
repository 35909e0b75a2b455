"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from sesam.artifacts.component_records import Candidate, Component, Outcome, Selected
from sesam.geometry.rle import mask_to_rle, to_coco_rle
from sesam.labels import IGNORE_INDEX
from sesam.params import SelectionParams

Mask = dict[str, Any]  # as pycocotools computes with, see `to_coco_rle`


class Coverage(NamedTuple):
    """How a candidate M covers its component C, in pixels.

    labeled: whether annotators labeled pixels W of C. covered, reference_area: |M∩W| and |W|, or without W |M∩C| and
    |C|. area: |M|. labels_inside, foreign: annotators' pixels inside M, and those of another class among them; 0
    without W.
    """

    labeled: bool
    covered: int
    reference_area: int
    area: int
    labels_inside: int
    foreign: int


class Evaluation(NamedTuple):
    """A candidate's coverage, and why it does not fit its component, or None if it does."""

    coverage: Coverage
    rejection: Outcome | None


def select_candidate(
    component: Component, candidates: Sequence[Candidate], weak: dict[int, Mask], selection: SelectionParams
) -> tuple[Selected, list[Evaluation]]:
    """Of the candidates that fit the component, the one with the highest predicted IoU, the first of several.

    If none fits, the component's own mask stays, with the reason of the candidate with the highest predicted IoU.
    Also the evaluation of every candidate. weak: see `weak_rles`.
    """
    evaluations = [evaluate_candidate(candidate, component, weak, selection) for candidate in candidates]
    fitting = [k for k, evaluation in enumerate(evaluations) if evaluation.rejection is None]
    best = max(fitting or range(len(candidates)), key=lambda k: candidates[k].predicted_iou)
    number, class_id, rejection = component.number, component.class_id, evaluations[best].rejection
    if rejection is None:
        mask = candidates[best]
        return Selected(number, class_id, best, mask.predicted_iou, mask.rle, Outcome.KEPT), evaluations
    return Selected(number, class_id, None, None, component.rle, rejection), evaluations


def evaluate_candidate(
    candidate: Candidate, component: Component, weak: dict[int, Mask], selection: SelectionParams
) -> Evaluation:
    """How a candidate covers its component, and whether it fits."""
    mask, component_mask = (to_coco_rle(rle, weak[IGNORE_INDEX]["size"]) for rle in (candidate.rle, component.rle))
    coverage = measure_coverage(mask, component_mask, component.class_id, weak)
    return Evaluation(coverage, rejection_reason(coverage, selection))


def rejection_reason(coverage: Coverage, selection: SelectionParams) -> Outcome | None:
    """Why a candidate M does not fit its component C, or None if it does.

    Where annotators labeled pixels W of C, M must hold a share of at least τ2 of them, and of all weak labels inside M
    at most `max_conflict` may be of another class. A C of confident predictions alone has no such reference: then
    |M∩C|/|C| ≥ τ2 and |M∩C|/|M| ≥ τ1. A stroke covers a few percent of its object, so |M∩C|/|M| does not measure a
    mask that grew from one.
    """
    if coverage.covered == 0 or coverage.covered < selection.tau_weak * coverage.reference_area:
        return Outcome.LOW_COVERAGE
    if not coverage.labeled:
        return Outcome.OVERSIZED if coverage.covered < selection.tau_mask * coverage.area else None
    return Outcome.CONFLICT if coverage.foreign > selection.max_conflict * coverage.labels_inside else None


def measure_coverage(mask: Mask, component: Mask, class_id: int, weak: dict[int, Mask]) -> Coverage:
    """How a candidate covers its component; COCO masks, weak as `weak_rles`."""
    labels = _intersection(component, weak[class_id]) if class_id in weak else component
    labeled = class_id in weak and coco.area(labels) > 0
    reference = labels if labeled else component
    inside = _area(_intersection(mask, weak[IGNORE_INDEX])) if labeled else 0
    foreign = inside - _area(_intersection(mask, weak[class_id])) if labeled else 0
    covered = _area(_intersection(mask, reference))
    return Coverage(labeled, covered, _area(reference), _area(mask), inside, foreign)


def weak_rles(weak: np.ndarray) -> dict[int, Mask]:
    """The weakly labeled pixels of each class of (H, W) uint8, and under 255 those of all classes, as COCO masks."""
    classes = [int(k) for k in np.unique(weak) if k != IGNORE_INDEX]
    masks = {k: mask_to_rle(weak == k) for k in classes} | {IGNORE_INDEX: mask_to_rle(weak != IGNORE_INDEX)}
    return {k: to_coco_rle(counts, weak.shape) for k, counts in masks.items()}


def _area(mask: Mask) -> int:
    return int(coco.area(mask))


def _intersection(mask: Mask, other: Mask) -> Mask:
    return coco.merge([mask, other], intersect=True)
