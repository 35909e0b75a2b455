"""Weak labels simulated from fine ones: coarse polygons, scribbles, points, boxes."""

from collections.abc import Iterable
from functools import partial

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from sesam.artifacts.drawn_prompts import NO_PROMPTS, DrawnBox, DrawnPrompts
from sesam.geometry.regions import Region, connected_regions, innermost_pixel, skeleton
from sesam.geometry.strokes import draw_stroke
from sesam.labels import IGNORE_INDEX
from sesam.params import Kind, WeakLabelParams
from sesam.seeds import seed_of


def mix_kinds(ids: Iterable[str], config: WeakLabelParams) -> dict[str, Kind]:
    """The kind of each image: as many of each as `mix` says, rounded down, and `kind` for all others.

    A larger fraction holds the images of the smaller one, while those before it in KINDS stay the same.
    """
    ids = list(ids)
    kinds: dict[str, Kind] = dict.fromkeys(ids, config.kind)
    left = set(ids)
    for kind, share in config.mix.shares.items():
        ranked = sorted(left, key=partial(seed_of, "mix", kind))
        chosen = ranked[: int(share * len(ids) + 1e-9)]
        kinds |= dict.fromkeys(chosen, kind)
        left.difference_update(chosen)
    return kinds


def simulate_weak_label(fine: np.ndarray, config: WeakLabelParams, kind: Kind | None = None) -> np.ndarray:
    """Weak labels (H, W) uint8 of fine labels (H, W) uint8; 255 = unlabeled, as all pixels are with box and none.

    kind: of the image, `config.kind` if None.
    """
    kind = kind or config.kind
    if kind == "fine":
        return fine
    if kind in ("box", "none"):
        return np.full_like(fine, IGNORE_INDEX)
    draw = {"coarse": draw_coarse_polygon, "scribble": draw_scribble, "point": draw_point}[kind]
    drawn = np.full_like(fine, IGNORE_INDEX)
    for k, region in connected_regions(fine, min_area=config.min_area):
        drawn[region.slices][clip_to_region(draw(region, config), region)] = k
    return drawn


def simulate_boxes(fine: np.ndarray, config: WeakLabelParams, kind: Kind | None = None) -> DrawnPrompts:
    """The boxes of the regions of fine labels (H, W) uint8, if they are of the kind box."""
    if (kind or config.kind) != "box":
        return NO_PROMPTS
    boxes = []
    for k, region in connected_regions(fine, min_area=config.min_area):
        height, width = region.mask.shape
        boxes.append(DrawnBox(k, (region.left, region.top, region.left + width, region.top + height)))
    return DrawnPrompts(tuple(boxes))


def clip_to_region(stroke: np.ndarray, region: Region) -> np.ndarray:
    """A stroke (h, w) bool inside the region, off its boundary if possible; never empty."""
    for allowed in (region.distance > 1, region.mask):
        if (stroke & allowed).any():
            return stroke & allowed
    x, y = innermost_pixel(region.distance)
    kept = np.zeros_like(region.mask)
    kept[y, x] = True
    return kept


def draw_coarse_polygon(region: Region, config: WeakLabelParams) -> np.ndarray:
    """The region eroded, its outline simplified to a few vertices, (h, w) bool (docs/explanation/method.md)."""
    distance, size = region.distance, np.sqrt(region.area)
    core = distance > min(config.coarse.erosion * size, 0.5 * distance.max())
    outlines, _ = cv2.findContours(core.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [cv2.approxPolyDP(outline, config.coarse.tolerance * size, closed=True) for outline in outlines]
    drawn = np.zeros(region.mask.shape, np.uint8)
    cv2.fillPoly(drawn, polygons, 1)
    return drawn.astype(bool)


def draw_scribble(region: Region, config: WeakLabelParams) -> np.ndarray:
    """A stroke along the skeleton of the region's core, (h, w) bool (after Boettcher et al., NeurIPS 2024)."""
    core = skeleton(np.maximum(region.distance - config.scribble.margin * region.distance.max(), 0))
    if not core.cells.any():
        return np.zeros_like(region.mask)
    path = core.pixels[longest_path(core.cells)]
    spare = round(len(path) * (1 - config.scribble.length_fraction) / 2)
    return draw_stroke(region.mask.shape, path[spare : len(path) - spare], config.scribble.thickness)


def draw_point(region: Region, config: WeakLabelParams) -> np.ndarray:
    """A small disc on the region's innermost pixel, (h, w) bool (after Bearman et al., ECCV 2016)."""
    drawn = np.zeros(region.mask.shape, np.uint8)
    cv2.circle(drawn, innermost_pixel(region.distance), config.point.radius, 1, cv2.FILLED)
    return drawn.astype(bool)


def longest_path(skeleton: np.ndarray) -> np.ndarray:
    """The longest shortest path in a skeleton (h, w) bool: (n,) int, which of its pixels in scan order, end to end.

    Two sweeps of Dijkstra from its first pixel, exact on a tree; of several connected parts, the longest path.
    """
    rows, columns = np.nonzero(skeleton)
    index = np.full(np.add(skeleton.shape, 2), -1)
    index[rows + 1, columns + 1] = np.arange(len(rows))
    edges = []
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        neighbor = index[rows + 1 + dy, columns + 1 + dx]
        start = np.flatnonzero(neighbor >= 0)
        edges.append((start, neighbor[start], np.full(len(start), np.hypot(dy, dx))))
    start, end, length = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    graph = coo_array((length, (start, end)), shape=(len(rows), len(rows))).tocsr()
    longest, last, previous = -1.0, 0, np.zeros(0, int)
    visited = np.zeros(len(rows), bool)
    while not visited.all():
        reach = dijkstra(graph, directed=False, indices=int(np.argmin(visited)))
        visited |= np.isfinite(reach)
        source = int(np.where(np.isfinite(reach), reach, -1).argmax())
        reach, predecessors = dijkstra(graph, directed=False, indices=source, return_predecessors=True)
        reach = np.where(np.isfinite(reach), reach, -1)
        if reach.max() > longest:
            longest, last, previous = float(reach.max()), int(reach.argmax()), predecessors
    path = [last]
    while previous[path[-1]] >= 0:
        path.append(int(previous[path[-1]]))
    return np.array(path)
