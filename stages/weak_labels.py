"""Weak labels: coarse polygons, scribbles or points, drawn from fine labels or by annotators.

`weak.kind: fine` gives the fine labels themselves, for comparison with full supervision.

What is drawn here, one per region, never holds a pixel of another class, and every region of at least
`weak.min_area` pixels gets one. With another `weak.origin` annotators' labels are brought to class ids, and
fine labels are not read. What people corrected, in data/corrections, lies on top of either.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from sesam.artifacts.manifest import Dataset, Item, item_label
from sesam.errors import SesamError, run_stage
from sesam.artifacts.atomic_io import whole_folder
from sesam.paths import WEAK_LABELS
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.invariants import check_classes, check_complete
from sesam.labels import UNLABELLED
from sesam.execution.parallel import per_image
from sesam.params import FINE_LABELS, Coarse, Point, Runtime, Scribble, Weak, load_params
from sesam.geometry.regions import Region, components, deepest, skeleton
from sesam.geometry.strokes import stroke
from sesam.datasets.annotations.reading import Annotation, find_annotations, is_annotated, read_annotation
from sesam.datasets.data_issues import NOT_ANNOTATED, Faulty, Found, message, some
from sesam.datasets.label_maps import Meaning, absent, meaning_of, occurring

FINE = Path(FINE_LABELS)
CORRECTIONS = Path("data/corrections")  # what people corrected of merged labels; see sesam/cli/export.py


def weak_label(fine: np.ndarray, weak: Weak) -> np.ndarray:
    """Weak labels (H, W) uint8 of fine labels (H, W) uint8; 255 where nobody drew."""
    if weak.kind == "fine":
        return fine
    stroke = {
        "coarse": partial(coarse_polygon, config=weak.coarse),
        "scribble": partial(scribble, config=weak.scribble),
        "point": partial(dot, config=weak.point),
    }[weak.kind]
    drawn = np.full_like(fine, UNLABELLED)
    for k, region in components(fine, min_area=weak.min_area):
        drawn[region.window][inside(stroke(region), region)] = k
    return drawn


def inside(stroke: np.ndarray, region: Region) -> np.ndarray:
    """What of a stroke (h, w) bool to keep: off the region's boundary if possible, in the region always."""
    for allowed in (region.depth > 1, region.mask):
        if (stroke & allowed).any():
            return stroke & allowed
    x, y = deepest(region.depth)
    kept = np.zeros_like(region.mask)
    kept[y, x] = True
    return kept


def coarse_polygon(region: Region, config: Coarse) -> np.ndarray:
    """The region eroded, its outline simplified to a few vertices, (h, w) bool (method.md, weak labels)."""
    depth, size = region.depth, np.sqrt(region.area)
    core = depth > min(config.erosion * size, 0.5 * depth.max())
    outlines, _ = cv2.findContours(core.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [cv2.approxPolyDP(outline, config.tolerance * size, closed=True) for outline in outlines]
    drawn = np.zeros(region.mask.shape, np.uint8)
    cv2.fillPoly(drawn, polygons, 1)
    return drawn.astype(bool)


def scribble(region: Region, config: Scribble) -> np.ndarray:
    """A stroke along the skeleton of the region's core, (h, w) bool (after Boettcher et al., NeurIPS 2024)."""
    core = skeleton(np.maximum(region.depth - config.margin * region.depth.max(), 0))
    if not core.cells.any():
        return np.zeros_like(region.mask)
    path = core.pixels[longest_path(core.cells)]
    spare = round(len(path) * (1 - config.length) / 2)
    return stroke(region.mask.shape, path[spare : len(path) - spare], config.thickness)


def dot(region: Region, config: Point) -> np.ndarray:
    """A small disc on the region's deepest pixel, (h, w) bool (after Bearman et al., ECCV 2016)."""
    drawn = np.zeros(region.mask.shape, np.uint8)
    cv2.circle(drawn, deepest(region.depth), config.radius, 1, cv2.FILLED)
    return drawn.astype(bool)


def longest_path(skeleton: np.ndarray) -> np.ndarray:
    """The longest shortest path in a skeleton (h, w) bool: (n,) int, which of its pixels in scan order, end to end.

    Two sweeps of Dijkstra from its first pixel, exact on a tree; of several
    connected parts, the one with the longest path.
    """
    rows, columns = np.nonzero(skeleton)
    number = np.full(np.add(skeleton.shape, 2), -1)
    number[rows + 1, columns + 1] = np.arange(len(rows))
    links = []
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = number[rows + 1 + dy, columns + 1 + dx]
        start = np.flatnonzero(other >= 0)
        links.append((start, other[start], np.full(len(start), np.hypot(dy, dx))))
    start, end, length = (np.concatenate(parts) for parts in zip(*links, strict=True))
    graph = coo_array((length, (start, end)), shape=(len(rows), len(rows))).tocsr()

    best, seen = (-1.0, 0, np.zeros(0, int)), np.zeros(len(rows), bool)
    while not seen.all():
        reach = dijkstra(graph, directed=False, indices=int(np.argmin(seen)))
        seen |= np.isfinite(reach)
        source = int(np.where(np.isfinite(reach), reach, -1).argmax())
        reach, back = dijkstra(graph, directed=False, indices=source, return_predecessors=True)
        reach = np.where(np.isfinite(reach), reach, -1)
        if reach.max() > best[0]:
            best = (float(reach.max()), int(reach.argmax()), back)
    _, node, back = best
    path = [node]
    while back[node] >= 0:
        node = int(back[node])
        path.append(node)
    return np.array(path)


def draw(item: Item, folder: Path, weak: Weak, palette: Palette) -> None:
    write_label(folder / f"{item.id}.png", weak_label(item_label(FINE, item, len(palette)), weak), palette)
    check_classes(folder, item, len(palette))


class Drawn(NamedTuple):
    """What annotators drew: which classes (see `occurring`), and whether on every pixel."""

    classes: int
    everywhere: bool


def convert(
    job: tuple[Item, Annotation],
    folder: Path,
    weak: Weak,
    classes: Sequence[str],
    palette: Palette,
    meaning: Meaning,
    onto: bool,
) -> Found | Drawn:
    """Write an annotation as weak label, or onto the one that is there; the fault that it has, if any."""
    item, annotation = job
    size = (item.height, item.width)
    try:
        label = read_annotation(annotation, size, classes, meaning, weak.scribble.thickness, weak.point.radius)
    except Faulty as problem:
        fault, text = problem.found
        return fault, f"{item.id}: {text}"
    if onto:
        label = np.where(label != UNLABELLED, label, item_label(folder, item, len(classes)))
    write_label(folder / f"{item.id}.png", label, palette)
    check_classes(folder, item, len(classes))
    return Drawn(occurring(label), bool((label != UNLABELLED).all()))


def convert_all(dataset: Dataset, origin: Path, folder: Path, weak: Weak, runtime: Runtime, onto: bool = False) -> None:
    """Write the annotations at `origin` as weak labels, of every image; SesamError telling every fault.

    onto: they are corrections of merged labels, whose PNGs hold class ids: write them onto the weak labels that are
    there, of the images that have any.
    """
    known = {item.id for item in dataset.train}
    found = find_annotations(origin, dataset.kind, known)
    others = sorted(found.keys() - known)
    if not found or (len(others) == len(found) and not onto):
        raise SesamError(
            f"{origin} annotates no image of the data set; expected PNG, XML or JSON files. An image of this data set "
            f"is called {min(known)}."
        )
    if others and onto:
        print(f"warning: {origin}: corrections of no training image: {some(others)}.", file=sys.stderr)
    faults = [(NOT_ANNOTATED, item.id) for item in dataset.train if item.id not in found and not onto]
    jobs = [(item, found[item.id]) for item in dataset.train if item.id in found]
    values = ("folder", [UNLABELLED]) if onto else (dataset.kind, list(dataset.ignore))
    meaning = meaning_of(values[0], len(dataset.classes), values[1])
    names, palette = dataset.classes, dataset.palette
    work = partial(convert, folder=folder, weak=weak, classes=names, palette=palette, meaning=meaning, onto=onto)
    done = per_image(work, jobs, runtime, "corrections" if onto else "weak_labels")
    faults += [one for one in done if not isinstance(one, Drawn)]
    if faults:
        raise SesamError(message(str(origin) if onto else f"{origin} (weak.origin)", faults))
    if onto:
        return
    drawn = [(item.id, one) for (item, _), one in zip(jobs, done, strict=True) if isinstance(one, Drawn)]
    empty = [k for k, one in drawn if one.classes == 0]
    everywhere = [k for k, one in drawn if one.everywhere]
    never = absent((one.classes for _, one in drawn), dataset.classes)
    for ids, kind in (
        (empty, "images in which annotators drew nothing"),
        (everywhere, "images labelled everywhere; 255 is unlabelled"),
        (never, "classes that annotators never drew"),
    ):
        if ids:
            print(f"warning: {kind}: {some(ids)}.", file=sys.stderr)


def main() -> None:
    params, dataset = load_params(), Dataset.load()
    weak = params.weak
    with whole_folder(WEAK_LABELS) as folder:
        if Path(weak.origin) != FINE:
            convert_all(dataset, Path(weak.origin), folder, weak, params.runtime)
        elif without := [item.id for item in dataset.train if not item.fine]:
            raise SesamError(
                f"{len(without)} training images have no fine labels to draw weak ones from, first {without[0]}. "
                "Set weak.origin to where their weak labels lie (Cityscapes: its gtCoarse)."
            )
        else:
            work = partial(draw, folder=folder, weak=weak, palette=dataset.palette)
            per_image(work, dataset.train, params.runtime, "weak_labels")
        if is_annotated(CORRECTIONS):
            convert_all(dataset, CORRECTIONS, folder, weak, params.runtime, onto=True)
        check_complete(folder, dataset.train)


if __name__ == "__main__":
    run_stage(main)
