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


class CandidateCheck(NamedTuple):
    """A candidate, its coverage, and why it does not fit its component, or None if it does."""

    candidate: Candidate
    coverage: Coverage
    rejection: Outcome | None


def select_candidate(
    component: Component, candidates: Sequence[Candidate], weak: dict[int, Mask], selection: SelectionParams
) -> tuple[Selected, list[CandidateCheck]]:
    """Of the candidates that fit the component, the one with the highest predicted IoU, the first of several.

    If none fits, the component's own mask stays, with the reason of the candidate with the highest predicted IoU.
    Also the check of every candidate. weak: see `weak_rles`.
    """
    coverages = [measure_coverage(candidate, component, weak) for candidate in candidates]
    reasons = [rejection_reason(coverage, selection) for coverage in coverages]
    checks = [CandidateCheck(*columns) for columns in zip(candidates, coverages, reasons, strict=True)]
    fitting = [k for k, reason in enumerate(reasons) if reason is None]
    best = max(fitting or range(len(candidates)), key=lambda k: candidates[k].predicted_iou)
    number, class_id, (mask, _, rejection) = component.number, component.class_id, checks[best]
    if rejection is None:
        return Selected(number, class_id, best, mask.predicted_iou, mask.rle, Outcome.KEPT), checks
    return Selected(number, class_id, None, None, component.rle, rejection), checks


def rejection_reason(coverage: Coverage, selection: SelectionParams) -> Outcome | None:
    """Why a candidate M does not fit its component C, or None if it does.

    Where annotators labeled pixels W of C, M must hold a share of at least τ2 of them, and of all weak labels inside M
    at most `max_conflict` may be of another class. A C of confident predictions alone has no such reference: then
    |M∩C|/|C| ≥ τ2 and |M∩C|/|M| ≥ τ1. A stroke covers a few percent of its object, so |M∩C|/|M| does not measure a
    mask that grew from one.
    """
    if coverage.covered == 0 or coverage.covered < selection.min_coverage * coverage.reference_area:
        return Outcome.LOW_COVERAGE
    if not coverage.labeled:
        return Outcome.OVERSIZED if coverage.covered < selection.min_mask_precision * coverage.area else None
    return Outcome.CONFLICT if coverage.foreign > selection.max_conflict * coverage.labels_inside else None


def measure_coverage(candidate: Candidate, component: Component, weak: dict[int, Mask]) -> Coverage:
    """How a candidate covers its component. weak: see `weak_rles`."""
    m, c = (to_coco_rle(rle, weak[IGNORE_INDEX]["size"]) for rle in (candidate.rle, component.rle))
    of_class = weak.get(component.class_id)
    if of_class is None or not _area(c, of_class):
        return Coverage(False, _area(m, c), _area(c), _area(m), 0, 0)
    inside = _area(m, weak[IGNORE_INDEX])
    return Coverage(True, _area(m, c, of_class), _area(c, of_class), _area(m), inside, inside - _area(m, of_class))


def weak_rles(weak: np.ndarray) -> dict[int, Mask]:
    """The weakly labeled pixels of each class of (H, W) uint8, and under 255 those of all classes, as COCO masks."""
    classes = [int(k) for k in np.unique(weak) if k != IGNORE_INDEX]
    masks = {k: mask_to_rle(weak == k) for k in classes} | {IGNORE_INDEX: mask_to_rle(weak != IGNORE_INDEX)}
    return {k: to_coco_rle(counts, weak.shape) for k, counts in masks.items()}


def _area(*masks: Mask) -> int:
    """The number of pixels in all of the masks."""
    return int(coco.area(coco.merge(list(masks), intersect=True)))
