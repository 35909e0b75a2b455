"""Connected regions, each cropped to its bounding box."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import find_objects
from skimage.measure import label
from skimage.morphology import skeletonize

from sesam.geometry.rle import counts_to_rle
from sesam.labels import IGNORE_INDEX

MAX_THINNED_DISTANCE = 16  # grid cells; a thinned region's largest distance is below twice this


@dataclass(frozen=True)
class Region:
    """A mask in its bounding box: `mask` (h, w) bool, whose upper left corner is at (top, left) of the image."""

    top: int
    left: int
    mask: np.ndarray

    @property
    def slices(self) -> tuple[slice, slice]:
        height, width = self.mask.shape
        return np.s_[self.top : self.top + height, self.left : self.left + width]

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @cached_property
    def distance(self) -> np.ndarray:
        """Distance to the nearest pixel outside, beyond the image too, (h, w) float32; 1 on the boundary, 0 outside."""
        padded = np.pad(self.mask.astype(np.uint8), 1)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        # squared distances are integers; OpenCV's last bit differs between calls
        return np.sqrt(np.rint(distance * distance))

    def full_mask(self, shape: tuple[int, int]) -> np.ndarray:
        """The mask in an image of `shape`, (H, W) bool."""
        image = np.zeros(shape, bool)
        image[self.slices] = self.mask
        return image

    def rle(self, shape: tuple[int, int]) -> str:
        """The RLE of `full_mask(shape)`."""
        height, width = shape
        # columns as rows; each begins and ends in the background, so edges alternate between starts and ends
        edges = np.diff(np.pad(self.mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        x, y = np.nonzero(edges)
        at = (self.left + x) * height + self.top + y
        joined = np.flatnonzero(at[1:-1:2] == at[2::2])  # a run to the last row continues in the next column
        at = np.delete(at, np.concatenate([2 * joined + 1, 2 * joined + 2]))
        counts = np.diff(at, prepend=0, append=height * width)
        return counts_to_rle(counts if counts[-1] else counts[:-1], shape)


class Skeleton(NamedTuple):
    """A topological skeleton: `cells` (h, w) bool on its grid; `pixels` (n, 2), the x, y of each in scan order."""

    cells: np.ndarray
    pixels: np.ndarray


def skeleton(distance: np.ndarray) -> Skeleton:
    """The topological skeleton (Zhang and Suen 1984) of the pixels of positive distance, (h, w) float32.

    Regions with distances of 2 MAX_THINNED_DISTANCE and more are thinned on a coarser grid, because the time grows
    with the distance times the area. A cell is inside if any of its pixels is, so that thin parts stay; its pixel is
    the one of the largest distance.
    """
    step = max(1, int(distance.max()) // MAX_THINNED_DISTANCE)
    height, width = distance.shape
    padded = np.pad(distance, ((0, -height % step), (0, -width % step)))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    cells = skeletonize(np.pad(blocks.max(axis=(1, 3)) > 0, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(cells)
    innermost = blocks[rows, :, columns, :].reshape(len(rows), step * step).argmax(axis=1)
    y, x = np.divmod(innermost, step)
    return Skeleton(cells, np.stack([columns * step + x, rows * step + y], axis=1))


def connected_regions(labels: np.ndarray, connectivity: int = 8, min_area: int = 1) -> list[tuple[int, Region]]:
    """(class, region) of every 8- or 4-connected region of a label map (H, W) uint8, by class, then in scan order.

    Only regions of at least `min_area` pixels.
    """
    ids = label(labels, background=IGNORE_INDEX, connectivity={4: 1, 8: 2}[connectivity])
    kept = np.bincount(ids.ravel()) >= min_area
    regions = []
    for k, slices in enumerate(find_objects(ids), 1):
        if kept[k]:
            region = Region(slices[0].start, slices[1].start, ids[slices] == k)
            regions.append((int(labels[slices][region.mask][0]), region))
    return sorted(regions, key=lambda pair: pair[0])


def region_from_mask(mask: np.ndarray) -> Region:
    """All pixels of (H, W) bool, at least one, as one region, connected or not."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return Region(top, left, mask[top : top + height, left : left + width])


def innermost_pixel(distance: np.ndarray) -> tuple[int, int]:
    """(x, y) of the first pixel in scan order with the largest distance, (h, w) float32."""
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x), int(y)
