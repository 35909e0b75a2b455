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
    check_not_everywhere,
    describe_unknown,
    find_palette_conflicts,
    label_map_for,
)
from sesam.datasets.layouts import IMAGE_SUFFIXES, list_files
from sesam.errors import SesamError, summarize_names, warn
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX, count_values
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
    folder: Path,
    manifest: Manifest,
    spec: LabelSpec,
    as_corrections: bool,
    default_kind: Kind,
    job: tuple[ImageRecord, Annotation],
) -> Issue | Written:
    """Write an annotation as the weak label in `folder`, or into it; what it holds, or its issue."""
    (record, annotation), num_classes = job, len(manifest.classes)
    try:
        drawn = read_annotation(annotation, spec._replace(size=(record.height, record.width)))
    except DataIssue as problem:
        issue = Issue(*problem.args)
        return issue._replace(text=f"{record.id}: {issue.text}")
    label, pixels = drawn.labels, Counter[str]()
    if as_corrections:
        weak = load_label(folder, record, num_classes)
        corrected, pixels = drop_unchanged(label, load_exported(record, num_classes), weak)
        drawn = replace(drawn, labels=corrected)
        label = np.where(corrected != IGNORE_INDEX, corrected, weak)
    check_labels(label, record, num_classes)
    write_label(folder / f"{record.id}.png", label, manifest.palette)
    write_drawn_prompts(folder, record, drawn.prompts)
    values = count_values(label) > 0
    values[[entry.class_id for entry in drawn.prompts.boxes]] = True
    return Written(values, replace(drawn, labels=label[:0]), kind_of(annotation, drawn, default_kind), pixels)


def write_unannotated(record: ImageRecord, folder: Path, palette: Palette, listed: Mapping[str, Kind]) -> Kind:
    """Write the weak label of an image without annotation: its fine label, unless it has none or is listed as none."""
    label = load_fine_label("train", record, len(palette))
    if listed.get(record.id) == "none":
        label = np.full_like(label, IGNORE_INDEX)
    write_label(folder / f"{record.id}.png", label, palette)
    return "fine" if (label != IGNORE_INDEX).any() else "none"


def import_all(manifest: Manifest, folder: Path, params: Params, counts: Counter[str]) -> dict[str, Kind]:
    """Write the weak labels of all training images, also of those without annotation; see `import_annotations`."""
    source = Path(params.weak_labels.path)
    warn_unread_files(source, manifest)
    listed = read_kinds(source, manifest.train)
    kinds = import_annotations(manifest, source, folder, params, counts, listed)
    rest = [record for record in manifest.train if record.id not in kinds]
    work = partial(write_unannotated, folder=folder, palette=manifest.palette, listed=listed)
    written = map_images(work, rest, params.runtime, "weak_labels") if rest else []
    return kinds | dict(zip([record.id for record in rest], written, strict=True)) | listed


def import_annotations(
    manifest: Manifest,
    source: Path,
    folder: Path,
    params: Params,
    counts: Counter[str],
    listed: Mapping[str, Kind] | None = None,
) -> dict[str, Kind]:
    """Write the annotations at `source` as weak labels of training images; SesamError with every issue.

    Returns the kind of each annotated image; `counts` gets how many shapes were drawn or left no pixel, by kind.

    listed: kinds that `read_kinds` found. None: the annotations correct pseudo-labels, so PNGs have class ids, and are
    written into weak labels in `folder`.
    """
    as_corrections, listed = listed is None, listed or {}
    title = f"{source}{' (weak_labels.path)' * (not as_corrections)}"
    names = ImageNames(manifest.train, manifest.val, load_unused())
    found = find_annotations(source, manifest.format, names, (*manifest.classes, *manifest.map))
    annotations = _without_empty(found, listed, as_corrections)
    others = sorted(annotations.keys() - names.train_ids)
    explained = names.explain(others)
    if not found or (len(others) == len(found) and not explained and not as_corrections):
        raise SesamError(_no_annotation(source, others, min(names.train_ids)))
    jobs = [(record, annotations[record.id]) for record in manifest.train if record.id in annotations]
    ids = [record.id for record, _ in jobs]
    config = params.weak_labels
    label_map = _label_map_of_corrections(manifest) if as_corrections else label_map_for(manifest)
    spec = LabelSpec((0, 0), manifest.classes, label_map, config.scribble.thickness, config.point.radius)
    work = partial(convert_annotation, folder, manifest, spec, as_corrections, config.kind)
    results = map_images(work, jobs, params.runtime, "corrections" if as_corrections else "weak_labels")
    named = annotations.keys() | {image_id for name in explained for image_id in names.candidates(name)}
    needed = [] if as_corrections else [x for x in manifest.train if not may_be_unannotated(x, config, listed)]
    missing = [record.id for record in needed if record.id not in named]
    written, issues = ([x for x in results if isinstance(x, Written)], [x for x in results if isinstance(x, Issue)])
    issues += [*explained.values(), *(Issue(IssueKind.NOT_ANNOTATED, k) for k in missing)]
    if as_corrections or manifest.format == "folder":
        issues += _palette_issues(jobs, written, manifest, label_map)
    if issues:
        lost = [k for k in others if k not in explained] if missing or explained else []
        notes = [f"Annotations of no training image: {summarize_names(lost)}."] if lost else []
        notes += describe_unknown(issues, label_map, manifest, not as_corrections)
        notes += draft_exclude(missing, params.dataset.exclude)
        raise SesamError(report_issues(title, issues, notes))
    counts += _count_shapes(source, ids, written)
    if as_corrections:
        _print_corrections(source, written, others)
    else:
        _check_values(title, manifest, ids, written, "fine" if "fine" in listed.values() else config.kind)
    return {image_id: result.kind for image_id, result in zip(ids, written, strict=True)}


def _without_empty(
    found: Mapping[str, Annotation], listed: Mapping[str, Kind], as_corrections: bool
) -> dict[str, Annotation]:
    """Without images that are listed as none, or that a tool lists although nobody drew in them.

    If nobody drew in any image, all stay, as they do of corrections.
    """
    annotations = {name: annotation for name, annotation in found.items() if listed.get(name) != "none"}
    drawn = {name: annotation for name, annotation in annotations.items() if not annotation.is_empty}
    return annotations if as_corrections or not drawn else drawn


def _print_corrections(source: Path, written: Sequence[Written], others: Sequence[str]) -> None:
    pixels = sum((result.pixels for result in written), Counter[str]())
    each = ", ".join(f"{pixels[kind]} {kind}" for kind in ("changed or new", "unchanged", "deleted"))
    print(f"{source}: pixels {each}; what is unchanged or deleted corrects nothing")
    warn(f"{source}: corrections that match no training image", others)


def _palette_issues(
    jobs: Sequence[tuple[ImageRecord, Annotation]], written: Sequence[Written], manifest: Manifest, label_map: LabelMap
) -> list[Issue]:
    if len(written) < len(jobs):
        return []  # others come first
    files = [(str(annotation.path), one.drawn.colors) for (_, annotation), one in zip(jobs, written, strict=True)]
    conflicts = find_palette_conflicts(files, manifest.classes, manifest.palette, label_map)
    return [Issue(IssueKind.PALETTES, text) for text in conflicts]


def _label_map_of_corrections(manifest: Manifest) -> LabelMap:
    """Their PNGs have class ids, whatever the data set's labels have; tools' names are the same."""
    by_names = {key: name for key, name in manifest.map.items() if not is_value_or_color(key)}
    written_here = replace(manifest, format="folder", ignore_values=(), map=by_names)
    return label_map_for(written_here)._replace(names=label_map_for(manifest).names)


def _check_values(source: str, manifest: Manifest, ids: Sequence[str], written: Sequence[Written], kind: Kind) -> None:
    """Warnings of what the weak labels do not have; SesamError if nothing could be learned, or values mislead."""
    absent = np.logical_not([result.values for result in written]).reshape(-1, 256)
    if absent[:, :IGNORE_INDEX].all():
        raise SesamError(
            f"{source} labels no pixel of any training image, so nothing could be learned. "
            "Give shapes the names of dataset.classes, and export again."
        )
    if manifest.format == "folder" and not any(x.drawn.shapes or x.drawn.colors.values for x in written):
        check_not_binary(source, manifest.classes, np.any(~absent, axis=0))
        if not manifest.map:  # which says what each value is
            check_not_everywhere(source, manifest.classes, kind, {x.kind for x in written})
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
