"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from sesam.geometry.rle import coco_mask, encode_mask
from sesam.labels import UNLABELLED
from sesam.params import Selection

Mask = dict[str, Any]  # as pycocotools computes with, see `coco_mask`


# why no candidate of a component was kept
MISSED, SPILLED, CONFLICT = "missed", "spilled", "conflict"


def weak_masks(weak: np.ndarray) -> dict[int, Mask]:
    """The weakly labelled pixels of each class of (H, W) uint8, and under 255 those of all classes, as COCO masks."""
    classes = [int(k) for k in np.unique(weak) if k != UNLABELLED]
    masks = {k: encode_mask(weak == k) for k in classes} | {UNLABELLED: encode_mask(weak != UNLABELLED)}
    return {k: coco_mask(counts, weak.shape) for k, counts in masks.items()}


class Overlap(NamedTuple):
    """How a candidate M lies on its component C, in pixels.

    labelled: whether annotators labelled pixels W of C. covered, of: |M∩W| and |W|, or without W |M∩C| and |C|. area:
    |M|. inside, foreign: annotators' pixels inside M, and those of another class among them; 0 without W.
    """

    labelled: bool
    covered: int
    of: int
    area: int
    inside: int
    foreign: int


def overlap(mask: Mask, component: Mask, k: int, weak: dict[int, Mask]) -> Overlap:
    """How a candidate lies on its component of class k; COCO masks, weak as `weak_masks`."""
    witness = _both(component, weak[k]) if k in weak else component
    labelled = k in weak and coco.area(witness) > 0
    of = witness if labelled else component
    inside = int(coco.area(_both(mask, weak[UNLABELLED]))) if labelled else 0
    foreign = inside - int(coco.area(_both(mask, weak[k]))) if labelled else 0
    return Overlap(labelled, int(coco.area(_both(mask, of))), int(coco.area(of)), int(coco.area(mask)), inside, foreign)


def refusal(found: Overlap, selection: Selection) -> str | None:
    """Why a candidate M does not fit its component C, or None if it does.

    Where annotators labelled pixels W of C, M must hold a share of at least τ2 of them, and of all
    weak labels inside M at most `max_conflict` may be of another class. A C that stands on confident
    predictions alone has no such witness: then |M∩C|/|C| ≥ τ2 and |M∩C|/|M| ≥ τ1. A stroke covers a few
    percent of its object, so |M∩C|/|M| says nothing about a mask that grew from one.
    """
    if found.covered == 0 or found.covered < selection.tau_weak * found.of:
        return MISSED
    if not found.labelled:
        return SPILLED if found.covered < selection.tau_mask * found.area else None
    return CONFLICT if found.foreign > selection.max_conflict * found.inside else None


def _both(one: Mask, other: Mask) -> Mask:
    return coco.merge([one, other], intersect=True)


def select(
    component: dict[str, Any], offered: list[dict[str, Any]], weak: dict[int, Mask], selection: Selection
) -> dict[str, Any]:
    """Of the candidates that fit the component, the one with the highest predicted IoU, the first of several.

    If none fits, `candidate` is null, `rle` is the component's own, and `refused` says why the candidate with
    the highest predicted IoU did not.
    """
    k, own = component["class"], coco_mask(component["rle"], weak[UNLABELLED]["size"])
    whose, refused = {"number": component["number"], "class": k}, None
    for place in sorted(range(len(offered)), key=lambda n: -offered[n]["iou"]):
        candidate = offered[place]
        why = refusal(overlap(coco_mask(candidate["rle"], own["size"]), own, k, weak), selection)
        if why is None:
            return whose | {"candidate": place, "iou": candidate["iou"], "rle": candidate["rle"], "refused": None}
        refused = refused or why
    return whose | {"candidate": None, "iou": None, "rle": component["rle"], "refused": refused}
