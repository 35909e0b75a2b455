"""Two SAMs that know the fine labels: one that never errs, and one that errs as SAM does on photographs.

SAM answers a prompt with a part of the object, the object, or a whole that holds it, its masks spill over weak borders,
and its predicted IoU does not always rank them. A checkpoint that does so on street scenes needs a GPU; this one shows
on a CPU what a rule makes of such masks.
"""

import cv2
import numpy as np
from skimage.measure import label

from sesam.artifacts.component_records import Candidate, Component
from sesam.geometry.rle import mask_to_rle, rle_to_mask
from sesam.labels import IGNORE_INDEX

NONE_RIGHT = 0.5  # the share of prompts for which no candidate is right
IOU_NOISE = 0.2  # standard deviation of the predicted IoU around the true one


class FineRegions:
    """The connected regions of an image's fine label, which answer its prompts."""

    def __init__(self, fine: np.ndarray) -> None:
        """fine: (H, W) uint8, 255 = none."""
        self.ids = label(fine, background=IGNORE_INDEX, connectivity=2)  # 0 = none

    def perfect(self, component: Component) -> list[Candidate]:
        """The region under most of the prompt, and with lower predicted IoU the whole image and nothing."""
        region = self.ids == self._touched(component)
        masks = ((0.9, region), (0.6, np.ones_like(region)), (0.3, np.zeros_like(region)))
        return [Candidate(iou, mask_to_rle(mask)) for iou, mask in masks]

    def erring(self, component: Component, rng: np.random.Generator) -> list[Candidate]:
        """Three masks: the region with a wobbly border, a part of it, a whole or a spill; sometimes none is right."""
        touched = self._touched(component)
        region = self.ids == touched
        errors = [self._part(region, component, rng), self._whole(region, rng), self._spill(region, rng)]
        if rng.uniform() >= NONE_RIGHT:
            errors[int(rng.integers(3))] = self._wobble(region, rng)
        return [Candidate(self._predicted_iou(mask, region, rng), mask_to_rle(mask)) for mask in errors]

    def _touched(self, component: Component) -> int:
        """The number of the region under most of a prompt."""
        if component.points is not None:
            x, y = np.array(component.points).T
            under = self.ids[y, x]
        else:
            under = self.ids[rle_to_mask(component.rle, self.ids.shape)]
        return int(np.bincount(under).argmax())

    def _part(self, region: np.ndarray, component: Component, rng: np.random.Generator) -> np.ndarray:
        """The cells of the region that hold points of the prompt, all but one point."""
        cells = self._cells(region, rng)
        points = component.points or np.argwhere(region)[:1, ::-1].tolist()
        prompted = [points[k] for k in rng.permutation(len(points))[: max(1, len(points) - 1)]]
        return region & np.isin(cells, [cells[y, x] for x, y in prompted])

    def _whole(self, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The region with one to three of its neighbors, the more likely the longer their common border."""
        ring = cv2.dilate(region.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~region
        border = np.bincount(self.ids[ring], minlength=self.ids.max() + 1).astype(float)
        border[0] = 0
        if not border.any():
            return region
        count = min(int(rng.integers(1, 4)), int((border > 0).sum()))
        return region | np.isin(self.ids, rng.choice(len(border), count, replace=False, p=border / border.sum()))

    def _spill(self, region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The region and a disc across its border, about as large as a third of it."""
        ring = np.argwhere(region & ~cv2.erode(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool))
        y, x = ring[int(rng.integers(len(ring)))].tolist()
        radius = int(np.sqrt(region.sum() * rng.uniform(0.2, 0.8) / np.pi)) + 1
        return region | cv2.circle(np.zeros(region.shape, np.uint8), (x, y), radius, 1, -1).astype(bool)

    @staticmethod
    def _wobble(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The region with a border one or two pixels off, here inwards, there outwards."""
        noise = cv2.resize(rng.standard_normal((12, 12)), region.shape[::-1], interpolation=cv2.INTER_CUBIC)
        inside = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 5)
        outside = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 5)
        return inside - outside + 1.2 * noise > 0

    @staticmethod
    def _cells(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Three to six cells of an image around pixels of the region, (H, W) int: each pixel's nearest."""
        pixels = np.argwhere(region)
        seeds = pixels[rng.choice(len(pixels), min(int(rng.integers(3, 7)), len(pixels)), replace=False)]
        marked = np.ones(region.shape, np.uint8)
        marked[tuple(seeds.T)] = 0
        cells: np.ndarray = cv2.distanceTransformWithLabels(
            marked, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )[1]
        return cells

    def _predicted_iou(self, mask: np.ndarray, region: np.ndarray, rng: np.random.Generator) -> float:
        iou = (mask & region).sum() / max(1, (mask | region).sum())
        return round(float(np.clip(iou + rng.normal(0, IOU_NOISE), 0, 1)), 5)
