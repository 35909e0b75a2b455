"""Annotators' files as weak labels, and corrections of them."""

import sys
from collections.abc import Iterable
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np

from sesam.artifacts.image_io import Palette, write_label
from sesam.artifacts.invariants import check_labels
from sesam.artifacts.manifest import ImageRecord, Manifest, load_label
from sesam.datasets.annotations.common import Annotation, LabelSpec
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.data_issues import DataIssue, Issue, IssueKind, format_issues, summarize_names
from sesam.datasets.label_maps import label_map_for
from sesam.errors import SesamError
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import Params


def convert_annotation(
    job: tuple[ImageRecord, Annotation], folder: Path, spec: LabelSpec, palette: Palette, as_corrections: bool
) -> Issue | np.ndarray:
    """Write an annotation as or into the weak label in `folder`; which values it has, (256,) bool, or its issue."""
    record, annotation = job
    try:
        label = read_annotation(annotation, spec._replace(size=(record.height, record.width)))
    except DataIssue as problem:
        kind, text = problem.args
        return kind, f"{record.id}: {text}"
    if as_corrections:
        label = np.where(label != IGNORE_INDEX, label, load_label(folder, record, len(palette)))
    check_labels(label, record, len(palette))
    write_label(folder / f"{record.id}.png", label, palette)
    return np.bincount(label.ravel(), minlength=256) > 0


def import_annotations(
    dataset: Manifest, source: Path, folder: Path, params: Params, as_corrections: bool = False
) -> None:
    """Write the annotations at `source` as weak labels of all training images; SesamError with every issue.

    as_corrections: they correct pseudo-labels, so PNGs have class ids, and are written into weak labels in `folder`.
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
    issues = [result for result in results if isinstance(result, tuple)]
    if not as_corrections:
        issues += [(IssueKind.NOT_ANNOTATED, record.id) for record in dataset.train if record.id not in annotations]
    if issues:
        raise SesamError(format_issues(str(source) if as_corrections else f"{source} (weak_labels.path)", issues))
    if as_corrections:
        _warn(f"{source}: corrections that match no training image", others)
        return
    absent = np.logical_not([result for result in results if isinstance(result, np.ndarray)])
    names = [record.id for record, _ in jobs]
    _warn("images without any label of annotators", compress(names, np.all(absent[:, :IGNORE_INDEX], axis=1)))
    _warn("images labeled everywhere; 255 is unlabeled", compress(names, absent[:, IGNORE_INDEX]))
    _warn("classes that annotators never drew", compress(dataset.classes, np.all(absent, axis=0)))


def _warn(subject: str, names: Iterable[str]) -> None:
    if listed := list(names):
        print(f"warning: {subject}: {summarize_names(listed)}.", file=sys.stderr)
