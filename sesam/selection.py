"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco

from sesam.artifacts.component_records import Candidate, Component, Outcome, Selected
from sesam.geometry.rle import CocoRle, mask_to_rle, to_coco_rle
from sesam.labels import IGNORE_INDEX
from sesam.params import SelectionParams


class Coverage(NamedTuple):
    """How a candidate M covers its component C, in pixels.

    labeled: whether annotators labeled pixels W of C. covered, reference_area: |M∩W| and |W|, or without W |M∩C| and
    |C|. area: |M|. fills_box: C is a box that annotators drew, and covered is the area of M's own box. anywhere: C is a
    concept without labeled pixels, so M covers what there is.
    """

    labeled: bool
    covered: int
    reference_area: int
    area: int
    fills_box: bool = False
    anywhere: bool = False

    @property
    def ratio(self) -> float:
        return self.covered / max(1, self.reference_area)


class ScoredCandidate(NamedTuple):
    """A candidate, its coverage, its score, and why it does not fit its component, or None if it does."""

    candidate: Candidate
    coverage: Coverage
    score: float
    rejection: Outcome | None


def select_candidate(
    component: Component, candidates: Sequence[Candidate], weak_masks: dict[int, CocoRle], selection: SelectionParams
) -> tuple[Selected, list[ScoredCandidate]]:
    """Of the candidates that fit the component, the one with the highest score, the first of several.

    If none fits, the component's own mask stays, with the reason of the candidate with the highest score. Also every
    candidate with its score. weak_masks: see `weak_masks_by_class`.
    """
    scored = [score_candidate(candidate, component, weak_masks, selection) for candidate in candidates]
    fitting = [k for k, candidate in enumerate(scored) if candidate.rejection is None]
    best = max(fitting or range(len(scored)), key=lambda k: scored[k].score)
    number, class_id, (mask, _, score, rejection) = component.number, component.class_id, scored[best]
    if rejection is None:
        return Selected(number, class_id, best, score, mask.rle, Outcome.KEPT), scored
    return Selected(number, class_id, None, None, component.rle, rejection), scored


def score_candidate(
    candidate: Candidate, component: Component, weak_masks: dict[int, CocoRle], selection: SelectionParams
) -> ScoredCandidate:
    """The score of a candidate M of a component C, and whether it fits.

    The score is M's predicted IoU times the square of its coverage: |M∩W|/|W| of the pixels W of C that annotators
    labeled, which must reach τ2. A C of confident predictions alone has no W: then |M∩C|/|C| must reach τ2, and
    |M∩C|/|M| must reach τ1. A stroke covers a few percent of its object, so |M∩C|/|M| does not measure a mask that
    grew from one.

    No object reaches out of the box that annotators drew around it, so M is cut to the box. It must reach the box's
    sides too: its own box must have τ2 of the box's area. A concept's M is cut to all boxes of its class; without
    labeled pixels any M fits.
    """
    if component.drawn_box:
        inside = coco.merge(
            [to_coco_rle(x.rle, weak_masks[IGNORE_INDEX]["size"]) for x in (candidate, component)], intersect=True
        )
        candidate = Candidate(candidate.predicted_iou, inside["counts"].decode())
    coverage = measure_coverage(candidate, component, weak_masks)
    score = round(candidate.predicted_iou * coverage.ratio**2, 5)
    rejection = None
    if coverage.covered == 0 or coverage.covered < selection.min_coverage * coverage.reference_area:
        rejection = Outcome.LOW_COVERAGE
    elif not coverage.labeled and coverage.covered < selection.min_mask_precision * coverage.area:
        rejection = Outcome.OVERSIZED
    return ScoredCandidate(candidate, coverage, score, rejection)


def measure_coverage(candidate: Candidate, component: Component, weak_masks: dict[int, CocoRle]) -> Coverage:
    """How a candidate covers its component. weak_masks: see `weak_masks_by_class`."""
    m, c = (to_coco_rle(rle, weak_masks[IGNORE_INDEX]["size"]) for rle in (candidate.rle, component.rle))
    of_class = weak_masks.get(component.class_id)
    labeled = of_class is not None and _area(c, of_class) > 0
    if component.concept is not None and not labeled:  # nobody said which pixels it shall cover
        return Coverage(False, _area(m), _area(m), _area(m), anywhere=True)
    reference = (c, of_class) if labeled else (c,)
    coverage = Coverage(labeled, _area(m, *reference), _area(*reference), _area(m))
    if not component.drawn_box:
        return coverage
    *_, width, height = coco.toBbox(m)
    fills = Coverage(False, round(width * height), _area(c), _area(m), fills_box=True)
    return min(coverage, fills, key=lambda x: x.ratio) if labeled else fills


def weak_masks_by_class(weak: np.ndarray) -> dict[int, CocoRle]:
    """The weakly labeled pixels of each class of (H, W) uint8, and under 255 the others, as COCO masks."""
    return {k: to_coco_rle(mask_to_rle(weak == k), weak.shape) for k in {*np.unique(weak).tolist(), IGNORE_INDEX}}


def _area(*masks: CocoRle) -> int:
    """The number of pixels in all of the masks."""
    return int(coco.area(coco.merge(list(masks), intersect=True)))
