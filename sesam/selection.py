"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from sesam.geometry.rle import mask_to_rle, to_coco_rle
from sesam.labels import IGNORE_INDEX
from sesam.params import SelectionParams

Mask = dict[str, Any]  # as pycocotools computes with, see `to_coco_rle`


# why no candidate of a component was kept
MISSED, SPILLED, CONFLICT = "missed", "spilled", "conflict"


def weak_rles(weak: np.ndarray) -> dict[int, Mask]:
    """The weakly labeled pixels of each class of (H, W) uint8, and under 255 those of all classes, as COCO masks."""
    classes = [int(k) for k in np.unique(weak) if k != IGNORE_INDEX]
    masks = {k: mask_to_rle(weak == k) for k in classes} | {IGNORE_INDEX: mask_to_rle(weak != IGNORE_INDEX)}
    return {k: to_coco_rle(counts, weak.shape) for k, counts in masks.items()}


class Coverage(NamedTuple):
    """How a candidate M lies on its component C, in pixels.

    labeled: whether annotators labeled pixels W of C. covered, of: |M∩W| and |W|, or without W |M∩C| and |C|. area:
    |M|. inside, foreign: annotators' pixels inside M, and those of another class among them; 0 without W.
    """

    labeled: bool
    covered: int
    of: int
    area: int
    inside: int
    foreign: int


def measure_coverage(mask: Mask, component: Mask, k: int, weak: dict[int, Mask]) -> Coverage:
    """How a candidate lies on its component of class k; COCO masks, weak as `weak_rles`."""
    witness = _intersection(component, weak[k]) if k in weak else component
    labeled = k in weak and coco.area(witness) > 0
    of = witness if labeled else component
    inside = int(coco.area(_intersection(mask, weak[IGNORE_INDEX]))) if labeled else 0
    foreign = inside - int(coco.area(_intersection(mask, weak[k]))) if labeled else 0
    return Coverage(
        labeled, int(coco.area(_intersection(mask, of))), int(coco.area(of)), int(coco.area(mask)), inside, foreign
    )


def rejection_reason(found: Coverage, selection: SelectionParams) -> str | None:
    """Why a candidate M does not fit its component C, or None if it does.

    Where annotators labeled pixels W of C, M must hold a share of at least τ2 of them, and of all
    weak labels inside M at most `max_conflict` may be of another class. A C that stands on confident
    predictions alone has no such witness: then |M∩C|/|C| ≥ τ2 and |M∩C|/|M| ≥ τ1. A stroke covers a few
    percent of its object, so |M∩C|/|M| says nothing about a mask that grew from one.
    """
    if found.covered == 0 or found.covered < selection.tau_weak * found.of:
        return MISSED
    if not found.labeled:
        return SPILLED if found.covered < selection.tau_mask * found.area else None
    return CONFLICT if found.foreign > selection.max_conflict * found.inside else None


def _intersection(one: Mask, other: Mask) -> Mask:
    return coco.merge([one, other], intersect=True)


def select_candidate(
    component: dict[str, Any], offered: list[dict[str, Any]], weak: dict[int, Mask], selection: SelectionParams
) -> dict[str, Any]:
    """Of the candidates that fit the component, the one with the highest predicted IoU, the first of several.

    If none fits, `candidate` is null, `rle` is the component's own, and `refused` says why the candidate with
    the highest predicted IoU did not.
    """
    k, own = component["class"], to_coco_rle(component["rle"], weak[IGNORE_INDEX]["size"])
    whose, refused = {"number": component["number"], "class": k}, None
    for place in sorted(range(len(offered)), key=lambda n: -offered[n]["iou"]):
        candidate = offered[place]
        why = rejection_reason(measure_coverage(to_coco_rle(candidate["rle"], own["size"]), own, k, weak), selection)
        if why is None:
            return whose | {"candidate": place, "iou": candidate["iou"], "rle": candidate["rle"], "refused": None}
        refused = refused or why
    return whose | {"candidate": None, "iou": None, "rle": component["rle"], "refused": refused}
