"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco
from skimage.graph import MCP_Geometric

from sesam.artifacts.component_records import Component, Selected
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, WEAK
from sesam.geometry.rle import rle_to_mask, to_coco_rle
from sesam.labels import IGNORE_INDEX

MAX_SIDE = 512  # pixels of the image on which distances are measured: finding paths takes a microsecond a pixel
SQUARE = np.ones((3, 3), np.uint8)
PREDICTED = 200.0  # pixels of distance by which a component of predictions alone claims less than annotators' labels


class PathCosts(NamedTuple):
    """What a path through an image pays for each square of `factor` pixels a side; costs: (h, w) float64."""

    costs: np.ndarray
    factor: int


def merge_labels(
    image: np.ndarray,
    weak: np.ndarray,
    confident: np.ndarray,
    components: Sequence[Component],
    selected: Sequence[Selected],
    weak_source: int = WEAK,
) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels and their sources, both (H, W) uint8.

    image: (H, W, 3) uint8 RGB. weak, confident: (H, W) uint8 weak labels and the teacher's confident predictions, 255 =
    none. weak_source: FINE where the weak labels are fine ones. Each pixel takes the class of the kept mask with the
    strongest claim, see `claim_strength`; then weak labels are restored, and pixels that are still empty take
    `confident`.
    """
    labels, sources = np.full_like(weak, IGNORE_INDEX), np.full_like(weak, NONE)
    strongest = np.full(weak.shape, -np.inf, np.float32)
    paths = path_costs(image)
    for component, chosen in zip(components, selected, strict=True):
        if chosen.kept:
            window, strength = claim_strength(component, chosen, paths, weak)
            wins = strength > strongest[window]
            strongest[window][wins] = strength[wins]
            labels[window][wins], sources[window][wins] = chosen.class_id, SAM
    labeled = weak != IGNORE_INDEX
    labels[labeled], sources[labeled] = weak[labeled], weak_source
    empty = (labels == IGNORE_INDEX) & (confident != IGNORE_INDEX)
    labels[empty], sources[empty] = confident[empty], CONFIDENT
    return labels, sources


def path_costs(image: np.ndarray) -> PathCosts:
    """A pixel costs 1 + the change of color there, in CIELAB's units per pixel. image: (H, W, 3) uint8 RGB.

    An image larger than MAX_SIDE is reduced, by a whole factor.
    """
    height, width = image.shape[:2]
    factor = -(-max(height, width) // MAX_SIDE)
    h, w = -(-height // factor), -(-width // factor)
    image = cv2.copyMakeBorder(image, 0, factor * h - height, 0, factor * w - width, cv2.BORDER_REPLICATE)
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    along = [cv2.Sobel(lab, cv2.CV_64F, dx, 1 - dx, scale=1 / 8) for dx in (0, 1)]
    return PathCosts(1 + np.linalg.norm(along, axis=(0, 3)), factor)


def claim_strength(
    component: Component, selected: Selected, paths: PathCosts, weak: np.ndarray
) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of an image around a kept mask and its component, and how strongly the mask claims each pixel there,
    (h, w) float32. weak: (H, W) uint8 weak labels, 255 = none.

    score / √(1 + distance to the pixels of the component that annotators labeled); -inf outside the mask. The distance
    is the cost of the cheapest path through the mask, so that edges separate (a geodesic distance, as in Bai & Sapiro
    2007): the number of pixels where all have one color, infinite to a part of the mask that does not touch those
    pixels. To a component of predictions alone it is PREDICTED more: a teacher errs with confidence, above all next to
    a class that it does not know.
    """
    shape = weak.shape
    both = coco.merge([to_coco_rle(record.rle, shape) for record in (selected, component)])
    left, top, width, height = coco.toBbox(both).astype(int).tolist()
    costs, factor = paths
    rows = slice(top // factor, -(-(top + height) // factor))
    columns = slice(left // factor, -(-(left + width) // factor))
    window = np.s_[factor * rows.start : factor * rows.stop, factor * columns.start : factor * columns.stop]
    mask, prompted = (rle_to_mask(record.rle, shape)[window] for record in (selected, component))
    if not mask.any():
        return window, np.full(mask.shape, -np.inf, np.float32)
    away, drawn = 0.0, prompted & (weak[window] == component.class_id)
    if drawn.any():
        prompted = drawn
    elif not component.drawn_box:
        away = PREDICTED
    strength = np.full_like(costs[rows, columns], selected.score)
    if prompted.any():  # not those of a concept that no pixel of the image was known to show
        starts, nearby = reduce_mask(prompted, factor), cv2.dilate(reduce_mask(mask | prompted, factor), SQUARE)
        inner = cv2.erode(starts, SQUARE, borderType=cv2.BORDER_CONSTANT, borderValue=0)  # no path starts within
        open_costs = np.where(nearby > inner, costs[rows, columns], -1)
        distance, _ = MCP_Geometric(open_costs).find_costs(np.argwhere(starts > inner))
        distance[inner > 0] = 0
        strength /= np.sqrt(1 + away + distance)
    strength = cv2.resize(strength, None, fx=factor, fy=factor)[: mask.shape[0], : mask.shape[1]]
    return window, np.where(mask, strength, -np.inf).astype(np.float32)


def reduce_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """1 for each square of `factor` pixels a side that holds a pixel of a mask (H, W) bool, 0 for the others; uint8."""
    padded = np.pad(mask, [(0, -n % factor) for n in mask.shape])
    height, width = (n // factor for n in padded.shape)
    return np.asarray(padded.reshape(height, factor, width, factor).any((1, 3)), np.uint8)
