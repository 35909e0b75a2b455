"""Annotators' files as weak labels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sesam.artifacts.invariants import check_labels
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_label
from sesam.datasets.annotations.reading import Annotation, find_annotations, read_annotation
from sesam.datasets.data_issues import NOT_ANNOTATED, DataIssue, Issue, format_issues, summarize_names
from sesam.datasets.label_maps import LabelMap, absent_classes, class_bitmask, label_map_for
from sesam.errors import SesamError
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import Runtime, WeakLabelParams


class DrawnClasses(NamedTuple):
    """What annotators drew: which classes (see `class_bitmask`), and whether on every pixel."""

    classes: int
    everywhere: bool


def convert_annotation(
    job: tuple[ImageRecord, Annotation],
    folder: Path,
    config: WeakLabelParams,
    classes: Sequence[str],
    palette: Palette,
    meaning: LabelMap,
    onto: bool,
) -> Issue | DrawnClasses:
    """Write an annotation as weak label, or onto the one that is there; the fault that it has, if any."""
    item, annotation = job
    size = (item.height, item.width)
    try:
        label = read_annotation(annotation, size, classes, meaning, config.scribble.thickness, config.point.radius)
    except DataIssue as problem:
        fault, text = problem.found
        return fault, f"{item.id}: {text}"
    if onto:
        label = np.where(label != IGNORE_INDEX, label, load_label(folder, item, len(classes)))
    check_labels(label, item, len(classes))
    write_label(folder / f"{item.id}.png", label, palette)
    return DrawnClasses(class_bitmask(label), bool((label != IGNORE_INDEX).all()))


def import_annotations(
    dataset: Dataset, origin: Path, folder: Path, config: WeakLabelParams, runtime: Runtime, onto: bool = False
) -> None:
    """Write the annotations at `origin` as weak labels, of every image; SesamError telling every fault.

    onto: they are corrections of merged labels, whose PNGs hold class ids: write them onto the weak labels that are
    there, of the images that have any.
    """
    known = {item.id for item in dataset.train}
    found = find_annotations(origin, dataset.format, known)
    others = sorted(found.keys() - known)
    if not found or (len(others) == len(found) and not onto):
        raise SesamError(
            f"{origin} annotates no image of the data set; expected PNG, XML or JSON files. An image of this data set "
            f"is called {min(known)}."
        )
    if others and onto:
        print(f"warning: {origin}: corrections of no training image: {summarize_names(others)}.", file=sys.stderr)
    faults = [(NOT_ANNOTATED, item.id) for item in dataset.train if item.id not in found and not onto]
    jobs = [(item, found[item.id]) for item in dataset.train if item.id in found]
    values = ("folder", [IGNORE_INDEX]) if onto else (dataset.format, list(dataset.ignore_values))
    meaning = label_map_for(values[0], len(dataset.classes), values[1])
    names, palette = dataset.classes, dataset.palette
    work = partial(
        convert_annotation, folder=folder, config=config, classes=names, palette=palette, meaning=meaning, onto=onto
    )
    done = map_images(work, jobs, runtime, "corrections" if onto else "weak_labels")
    faults += [one for one in done if not isinstance(one, DrawnClasses)]
    if faults:
        raise SesamError(format_issues(str(origin) if onto else f"{origin} (weak_labels.source)", faults))
    if onto:
        return
    drawn = [(item.id, one) for (item, _), one in zip(jobs, done, strict=True) if isinstance(one, DrawnClasses)]
    empty = [k for k, one in drawn if one.classes == 0]
    everywhere = [k for k, one in drawn if one.everywhere]
    never = absent_classes((one.classes for _, one in drawn), dataset.classes)
    for ids, kind in (
        (empty, "images in which annotators drew nothing"),
        (everywhere, "images labeled everywhere; 255 is unlabeled"),
        (never, "classes that annotators never drew"),
    ):
        if ids:
            print(f"warning: {kind}: {summarize_names(ids)}.", file=sys.stderr)
