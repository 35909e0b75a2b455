"""Annotators' files as weak labels, and corrections of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.drawn_prompts import write_drawn_prompts
from sesam.artifacts.image_io import Palette, write_label
from sesam.artifacts.invariants import check_labels
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label, load_label, load_unused
from sesam.datasets.annotation_kinds import KINDS_FILE, kind_of, may_be_unannotated, read_kinds
from sesam.datasets.annotations.common import Annotation, Drawn, LabelSpec
from sesam.datasets.annotations.image_names import ImageNames
from sesam.datasets.annotations.registry import find_annotations, read_annotation
from sesam.datasets.annotations.yolo import lacks_class_names
from sesam.datasets.data_issues import DataIssue, Issue, IssueKind, draft_exclude, report_issues
from sesam.datasets.exported_labels import drop_unchanged, load_exported
from sesam.datasets.label_maps import (
    LabelMap,
    check_not_binary,
    describe_unknown,
    find_palette_conflicts,
    label_map_for,
)
from sesam.datasets.layouts import IMAGE_SUFFIXES, list_files
from sesam.errors import SesamError, summarize_names, warn
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import Kind, Params, is_value_or_color

# of annotations, and of what tools put beside them
READ_SUFFIXES = (
    ".png",
    ".xml",
    ".json",
    ".geojson",
    ".jsonl",
    ".txt",
    ".jpg",
    ".jpeg",
    ".yaml",
    ".yml",
    ".names",
    ".data",
    ".md",
)


class Written(NamedTuple):
    """A weak label that was written. values: (256,) bool, which it or its boxes have. drawn: without its labels."""

    values: np.ndarray
    drawn: Drawn
    kind: Kind
    pixels: Counter[str]  # of a correction: changed or new, unchanged, deleted


def convert_annotation(
    job: tuple[ImageRecord, Annotation],
    folder: Path,
    spec: LabelSpec,
    palette: Palette,
    as_corrections: bool,
    default_kind: Kind,
) -> Issue | Written:
    """Write an annotation as the weak label in `folder`, or into it; what it holds, or its issue."""
    record, annotation = job
    try:
        drawn = read_annotation(annotation, spec._replace(size=(record.height, record.width)))
    except DataIssue as problem:
        issue = Issue(*problem.args)
        return issue._replace(text=f"{record.id}: {issue.text}")
    label, pixels = drawn.labels, Counter[str]()
    if as_corrections:
        label, pixels = drop_unchanged(label, load_exported(record, len(palette)))
        label = np.where(label != IGNORE_INDEX, label, load_label(folder, record, len(palette)))
    check_labels(label, record, len(palette))
    write_label(folder / f"{record.id}.png", label, palette)
    write_drawn_prompts(folder, record, drawn.prompts)
    values = np.bincount(label.ravel(), minlength=256) > 0
    values[[entry.class_id for entry in drawn.prompts.boxes]] = True
    return Written(values, replace(drawn, labels=label[:0]), kind_of(annotation, drawn, default_kind), pixels)


def write_unannotated(record: ImageRecord, folder: Path, palette: Palette, listed: Mapping[str, Kind]) -> Kind:
    """Write the weak label of an image without annotation: its fine label, unless it has none or is listed as none."""
    label = load_fine_label("train", record, len(palette))
    if listed.get(record.id) == "none":
        label = np.full_like(label, IGNORE_INDEX)
    write_label(folder / f"{record.id}.png", label, palette)
    return "fine" if (label != IGNORE_INDEX).any() else "none"


def import_annotations(
    manifest: Manifest,
    source: Path,
    folder: Path,
    params: Params,
    counts: Counter[str],
    as_corrections: bool = False,
) -> dict[str, Kind]:
    """Write the annotations at `source` as weak labels of all training images; SesamError with every issue.

    Returns the kind of each image. Adds to `counts` how many shapes were drawn, and how many left no pixel, by kind.

    as_corrections: they correct pseudo-labels, so PNGs have class ids, and are written into weak labels in `folder`.
    """
    names = ImageNames(manifest.train, manifest.val, load_unused())
    warn_unread_files(source, manifest)
    annotations = find_annotations(source, manifest.format, names, (*manifest.classes, *manifest.map))
    others = sorted(annotations.keys() - names.train_ids)
    listed = {} if as_corrections else read_kinds(source, names)
    annotations = {k: annotation for k, annotation in annotations.items() if listed.get(k) != "none"}
    explained = names.explain(others)
    if not annotations or (len(others) == len(annotations) and not explained and not as_corrections):
        raise SesamError(_no_annotation(source, others, min(names.train_ids)))
    jobs = [(record, annotations[record.id]) for record in manifest.train if record.id in annotations]
    label_map = _label_map_of_corrections(manifest) if as_corrections else label_map_for(manifest)
    widths = params.weak_labels.scribble.thickness, params.weak_labels.point.radius
    spec = LabelSpec((0, 0), manifest.classes, label_map, *widths)
    work = partial(
        convert_annotation,
        folder=folder,
        spec=spec,
        palette=manifest.palette,
        as_corrections=as_corrections,
        default_kind=params.weak_labels.kind,
    )
    results = map_images(work, jobs, params.runtime, "corrections" if as_corrections else "weak_labels")
    written = [result for result in results if isinstance(result, Written)]
    issues = [result for result in results if isinstance(result, Issue)]
    issues += explained.values()
    unannotated = [record for record in manifest.train if record.id not in annotations and not as_corrections]
    named = {image_id for name in explained for image_id in names.candidates(name)}
    missing = [
        record.id
        for record in unannotated
        if record.id not in named
        and not (listed.get(record.id) == "none" or may_be_unannotated(record, params.weak_labels))
    ]
    issues += [Issue(IssueKind.NOT_ANNOTATED, k) for k in missing]
    if (as_corrections or manifest.format == "folder") and len(written) == len(jobs):
        files = [(str(job[1].path), one.drawn.colors) for job, one in zip(jobs, written, strict=True)]
        conflicts = find_palette_conflicts(files, manifest.classes, manifest.palette, label_map)
        issues += [Issue(IssueKind.PALETTES, text) for text in conflicts]
    if issues:
        lost = [k for k in others if k not in explained] if missing or explained else []
        notes = [f"Annotations of no training image: {summarize_names(lost)}."] if lost else []
        notes += describe_unknown(issues, label_map, manifest, may_map_values=not as_corrections)
        notes += draft_exclude(missing, params.dataset.exclude)
        raise SesamError(report_issues(f"{source}{' (weak_labels.path)' * (not as_corrections)}", issues, notes))
    ids = [record.id for record, _ in jobs]
    counts += _count_shapes(source, ids, written)
    kinds: dict[str, Kind] = {image_id: result.kind for image_id, result in zip(ids, written, strict=True)}
    work_left = partial(write_unannotated, folder=folder, palette=manifest.palette, listed=listed)
    others_kinds = map_images(work_left, unannotated, params.runtime, "weak_labels") if unannotated else []
    kinds |= zip([record.id for record in unannotated], others_kinds, strict=True)
    if as_corrections:
        pixels = sum((result.pixels for result in written), Counter[str]())
        each = ", ".join(f"{pixels[kind]} {kind}" for kind in ("changed or new", "unchanged", "deleted"))
        print(f"{source}: pixels {each}; what is unchanged or deleted corrects nothing")
        warn(f"{source}: corrections that match no training image", others)
    else:
        _check_values(f"{source} (weak_labels.path)", manifest, ids, written)
    return kinds | listed


def _label_map_of_corrections(manifest: Manifest) -> LabelMap:
    """Their PNGs have class ids, whatever the data set's labels have; tools' names are the same."""
    by_names = {key: name for key, name in manifest.map.items() if not is_value_or_color(key)}
    written_here = replace(manifest, format="folder", ignore_values=(), map=by_names)
    return label_map_for(written_here)._replace(names=label_map_for(manifest).names)


def _check_values(source: str, manifest: Manifest, ids: Sequence[str], written: Sequence[Written]) -> None:
    """Warnings of what the weak labels do not have; SesamError if nothing could be learned from them."""
    absent = np.logical_not([result.values for result in written])
    if absent[:, :IGNORE_INDEX].all():
        raise SesamError(
            f"{source} labels no pixel of any training image, so nothing could be learned. "
            "Give shapes the names of dataset.classes, and export again."
        )
    if manifest.format == "folder" and not any(x.drawn.shapes or x.drawn.colors.values for x in written):
        check_not_binary(source, manifest.classes, np.any(~absent, axis=0))
    warn("images without any label of annotators", compress(ids, np.all(absent[:, :IGNORE_INDEX], axis=1)))
    warn(
        "images labeled everywhere, taken as fine masks; 255 is unlabeled, other values by dataset.map",
        compress(ids, absent[:, IGNORE_INDEX]),
    )
    warn("classes that no pixel or box has", compress(manifest.classes, np.all(absent, axis=0)))


def _no_annotation(source: Path, others: Sequence[str], image_id: str) -> str:
    """What `source` holds instead of annotations of training images."""
    text = f"{source} annotates no training image. Training images have ids like {image_id}"
    if others:
        remedy = "Names must end in an id, without another split's folder before it"
        return f"{text}; the annotations are of {summarize_names(others)}. {remedy}."
    suffixes = Counter(path.suffix.lower() or "no ending" for path in list_files(source))
    found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items())) or "no file"
    remedy = "Unpack archives; save labels as PNG; put data.yaml or classes.txt beside YOLO's .txt."
    return f"{text}; expected PNG, XML, JSON or YOLO's text files, found {found}. {remedy}"


def warn_unread_files(source: Path, manifest: Manifest) -> None:
    """Warn of files below a folder that no reader takes, as archives and TIFFs, except the data set's images."""
    digests = {record.sha256 for record in (*manifest.train, *manifest.val)}
    files = list_files(source) if source.is_dir() else []
    others = [path for path in files if path.suffix.lower() not in READ_SUFFIXES]
    unread = [path for path in others if path.suffix.lower() not in IMAGE_SUFFIXES or sha256(path) not in digests]
    unread = [path for path in unread if path != source / KINDS_FILE]
    expected = "expected PNG, XML, JSON, or YOLO's text with data.yaml or classes.txt"
    unread += [path for path in files if lacks_class_names(path, source)]
    warn(f"{source}: files that are not read; {expected}", [path.name for path in unread])


def _count_shapes(source: Path, ids: Sequence[str], written: Sequence[Written]) -> Counter[str]:
    """How many shapes were drawn, and how many left no pixel, by kind; printed too, the latter with their images."""
    counts = Counter[str]()
    for result in written:
        boxes, background = result.drawn.prompts.boxes, result.drawn.prompts.background_points
        counts += Counter(shapes=result.drawn.shapes, boxes=len(boxes), background_points=len(background))
        counts += result.drawn.left_out
    if counts["shapes"]:
        prompts = f"; {counts['boxes']} boxes and {counts['background_points']} background points prompt SAM"
        prompts = f"{prompts} and label no pixel" if counts["boxes"] + counts["background_points"] else ""
        print(f"{source}: {counts['shapes']} shapes of {len(written)} images{prompts}")
    for kind in sorted(counts.keys() - {"shapes", "boxes", "background_points"}):
        warn(
            f"{kind}: {counts[kind]}, in images",
            [k for k, result in zip(ids, written, strict=True) if result.drawn.left_out[kind]],
        )
    return counts
