"""Annotators' files as weak labels, and corrections of them."""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sesam.artifacts.invariants import check_labels
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_label
from sesam.datasets.annotations.common import Annotation, LabelSpec
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.data_issues import NOT_ANNOTATED, DataIssue, Issue, format_issues, summarize_names
from sesam.datasets.label_maps import absent_classes, class_bitmask, label_map_for
from sesam.errors import SesamError
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import Params


class LabeledClasses(NamedTuple):
    """The classes of a weak label, see `class_bitmask`, and whether it has one at every pixel."""

    bitmask: int
    everywhere: bool


def convert_annotation(
    job: tuple[ImageRecord, Annotation], folder: Path, spec: LabelSpec, palette: Palette, as_corrections: bool
) -> Issue | LabeledClasses:
    """Write an annotation as weak label, or its corrections into the one in `folder`; its issue, if it has one."""
    record, annotation = job
    try:
        label = read_annotation(annotation, spec._replace(size=(record.height, record.width)))
    except DataIssue as problem:
        kind, text = problem.issue
        return kind, f"{record.id}: {text}"
    if as_corrections:
        label = np.where(label != IGNORE_INDEX, label, load_label(folder, record, len(palette)))
    check_labels(label, record, len(palette))
    write_label(folder / f"{record.id}.png", label, palette)
    return LabeledClasses(class_bitmask(label), bool((label != IGNORE_INDEX).all()))


def import_annotations(
    dataset: Dataset, source: Path, folder: Path, params: Params, as_corrections: bool = False
) -> None:
    """Write the annotations at `source` as weak labels of all training images; SesamError with every issue.

    as_corrections: they correct pseudo-labels, so PNGs have class ids. They are written into the weak labels that are
    in `folder`, of the images that have any.
    """
    ids = {record.id for record in dataset.train}
    annotations = find_annotations(source, dataset.format, ids)
    others = sorted(annotations.keys() - ids)
    if not annotations or (len(others) == len(annotations) and not as_corrections):
        raise SesamError(
            f"{source} annotates no image of the data set; expected PNG, XML or JSON files that name its images by "
            f"their ids (example: {min(ids)})."
        )
    jobs = [(record, annotations[record.id]) for record in dataset.train if record.id in annotations]
    dataset_format, ignore_values = ("folder", ()) if as_corrections else (dataset.format, dataset.ignore_values)
    label_map = label_map_for(dataset_format, len(dataset.classes), ignore_values)
    widths = params.weak_labels.scribble.thickness, params.weak_labels.point.radius
    spec = LabelSpec((0, 0), dataset.classes, label_map, *widths)
    work = partial(convert_annotation, folder=folder, spec=spec, palette=dataset.palette, as_corrections=as_corrections)
    results = map_images(work, jobs, params.runtime, "corrections" if as_corrections else "weak_labels")
    issues = [result for result in results if not isinstance(result, LabeledClasses)]
    if not as_corrections:
        issues += [(NOT_ANNOTATED, record.id) for record in dataset.train if record.id not in annotations]
    if issues:
        raise SesamError(format_issues(str(source) if as_corrections else f"{source} (weak_labels.source)", issues))
    labels = [(job[0].id, label) for job, label in zip(jobs, results, strict=True) if isinstance(label, LabeledClasses)]
    if as_corrections:
        _warn(f"{source}: corrections that match no training image", others)
        return
    _warn("images without any label of annotators", [k for k, label in labels if label.bitmask == 0])
    _warn("images labeled everywhere; 255 is unlabeled", [k for k, label in labels if label.everywhere])
    absent = absent_classes((label.bitmask for _, label in labels), dataset.classes)
    _warn("classes that annotators never drew", absent)


def _warn(subject: str, names: list[str]) -> None:
    if names:
        print(f"warning: {subject}: {summarize_names(names)}.", file=sys.stderr)
