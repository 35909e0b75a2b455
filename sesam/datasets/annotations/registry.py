"""The annotations of a folder or a file, in every known format. A new format is a module and an entry here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np

from sesam.artifacts.atomic_io import sha256
from sesam.datasets.annotation_shapes import Drawing
from sesam.datasets.annotations import (
    coco,
    cvat,
    geojson,
    label_studio,
    labelme,
    png,
    scribblesup,
    via,
    voc_boxes,
    whats_the_point,
    yolo,
)
from sesam.datasets.annotations.common import (
    FAULTS,
    Annotation,
    AnnotationFile,
    Drawn,
    LabelSpec,
    describe_fault,
    file_kind,
)
from sesam.datasets.annotations.image_names import ImageNames, split_of
from sesam.datasets.annotations.mask_folders import read_mask_folder
from sesam.datasets.data_issues import DataIssue, IssueKind, unknown_values
from sesam.datasets.label_maps import MAX_UNKNOWN
from sesam.datasets.layouts import IMAGE_SUFFIXES, TILES_INDEX, list_files
from sesam.errors import MAX_NAMES_SHOWN, SesamError
from sesam.labels import IGNORE_INDEX


@dataclass(frozen=True)
class WithPrompts(Annotation):
    """Two annotations of an image, one of which has boxes and background points alone."""

    parts: tuple[Annotation, Annotation]

    def draw(self, spec: LabelSpec) -> Drawn:
        first, second = (read_annotation(part, spec) for part in self.parts)
        labels = np.where(first.labels == IGNORE_INDEX, second.labels, first.labels)
        shapes, left_out = first.shapes + second.shapes, first.left_out + second.left_out
        colors = first.colors if first.colors.values else second.colors
        return Drawn(labels, [], shapes, left_out, colors, first.prompts + second.prompts)


class Reader(Protocol):
    """A format that annotations are read from. SUFFIX: the `file_kind` of its files."""

    NAME: str
    SUFFIX: str

    def read(self, file: AnnotationFile) -> Sequence[tuple[str, Annotation]] | None:
        """A file's annotations, each with the image's name; None, ValueError, KeyError or TypeError: another format."""


# the first that returns annotations; the last two take every XML and every JSON mapping, so new ones come before
READERS: tuple[Reader, ...] = (
    png,
    yolo,
    cvat,
    voc_boxes,
    geojson,
    coco,
    label_studio,
    labelme,
    via,
    scribblesup,
    whats_the_point,
)
EXPORTERS = {"cvat": cvat.write, "label-studio": label_studio.write, "labelme": labelme.write, "coco": coco.write}


def is_annotated(folder: Path) -> bool:
    """Whether a folder exists and has a file that may be an annotation."""
    kinds = {reader.SUFFIX for reader in READERS}
    files = [path for path in list_files(folder) if file_kind(path) in kinds]
    return any(file_kind(path) != yolo.SUFFIX or any(yolo.read_rows(path) or []) for path in files)


def find_annotations(
    source: Path, dataset_format: str, names: ImageNames, classes: Sequence[str] = ()
) -> dict[str, Annotation]:
    """The annotations at `source`, a file or folder, by training image's id; those of no such image by their name.

    PNG's paths end in the image's id, ScribbleSup's are it. PNGs with the bytes of a data set's image are left out.
    SesamError if an image has two, or a file is unreadable.
    """
    if not source.is_dir() and file_kind(source) not in (".json", ".xml"):
        hint = (
            " Unpack it." if source.suffix.lower() in (".zip", ".gz", ".tar", ".7z", ".rar") else " Correct the path."
        )
        expected = "a folder of PNG, XML, JSON or YOLO's text files, or an XML or JSON file"
        raise SesamError(f"weak_labels.path: {source} is not {expected}.{hint}")
    entries: dict[str, _Entry] = {}
    for image_id, entry in _read_all(source, dataset_format, names, classes):
        other = entries.get(image_id) if image_id in names.train_ids else None
        entries[image_id] = entry if other is None else _combine(image_id, other, entry)
    return {image_id: entry.annotation for image_id, entry in entries.items()}


class _Entry(NamedTuple):
    """An annotation of an image. name: the image's in its file. is_own: its file is of this image alone."""

    name: str
    annotation: Annotation
    is_own: bool

    def __str__(self) -> str:
        return f"{self.annotation.path} ({self.name})"


def _combine(image_id: str, first: _Entry, second: _Entry) -> _Entry:
    """Of two entries the one with shapes, or both if one only prompts; SesamError if both label the image."""
    parts = first.annotation, second.annotation
    is_twice = parts[0].path == parts[1].path
    is_copy = first.is_own and second.is_own  # a file with the name of the image that it was copied from
    if is_twice or is_copy or not any(part.is_empty or part.only_prompts for part in parts):
        raise SesamError(_both_annotate(image_id, first, second))
    if parts[1].is_empty:  # as of who had other images of a project
        return first
    annotation = parts[1] if parts[0].is_empty else WithPrompts(parts[1].path, parts)
    return _Entry(second.name, annotation, first.is_own or second.is_own)


def _both_annotate(image_id: str, first: _Entry, second: _Entry) -> str:
    one, other = first.annotation.path, second.annotation.path
    if one == other:
        return f"{one} annotates {image_id} twice, as {first.name} and as {second.name}. Keep one of the two entries."
    text = f"{first} and {second} both annotate {image_id}. Keep one, and photographs elsewhere."
    if first.is_own and second.is_own and (wrong := [e for e in (first, second) if not _is_named(e)]):
        text += f" Or correct the image's name in {wrong[0].annotation.path}."
    is_mask = file_kind(one) == file_kind(other) == png.SUFFIX and one.parent != other.parent
    return text + " A folder of masks of one class must have its name." * is_mask


def _is_named(entry: _Entry) -> bool:
    """Whether a file of one image has the image's name, as a copied one has not."""
    return entry.annotation.path.stem == PurePosixPath(entry.name.replace("\\", "/")).stem


def _read_all(
    source: Path, dataset_format: str, names: ImageNames, classes: Sequence[str]
) -> Iterator[tuple[str, _Entry]]:
    """Each annotation with its image's id."""
    own_folders = {k.split("/")[0] for k in names.train_ids if "/" in k}  # of images, which may be called as classes
    no_folders = [k for k in classes if k not in own_folders]
    if source.is_dir() and (masks := read_mask_folder(source, no_folders)) is not None:
        yield from ((names.match(name) or name, _Entry(name, annotation, False)) for name, annotation in masks)
        return
    for path in list_files(source) if source.is_dir() else [source]:
        is_polygons = dataset_format == "cityscapes" and path.stem.endswith("_polygons")
        if is_polygons or path.name == TILES_INDEX:  # Cityscapes has its label PNGs as polygons too
            continue
        reader, found = _read_file(AnnotationFile(path, _image_name(path, source, dataset_format)))
        for name, annotation in found:
            image_id = name
            if isinstance(annotation, Drawing):  # tools name images in their own ways
                image_id = names.match(name, annotation.own_name, is_url=reader is label_studio) or name
                if image_id in names.val_ids and "/" not in name and (split := split_of(path)):
                    image_id = names.match(f"{split}/{name}") or f"{split}/{name}"  # both splits have such an image
            elif isinstance(annotation, png.LabelPng):
                if sha256(path) in names.digests:
                    continue  # the photograph, which many tools export too
                image_id = name
                if dataset_format == "folder":  # 0.jpg.png may be the label of 0.jpg
                    named = name if name.lower().endswith(IMAGE_SUFFIXES) else None
                    image_id = names.match(f"{name}.png", named) or name
            yield image_id, _Entry(name, annotation, annotation.own_name is not None)


def read_annotation(annotation: Annotation, spec: LabelSpec) -> Drawn:
    """An annotation as labels; DataIssue: another size, not a class, or it cannot be read."""
    drawn = annotation.draw(spec)
    if not drawn.unknown:
        return drawn
    if isinstance(annotation, png.LabelPng):
        raise unknown_values(annotation.path, [str(value) for value in drawn.unknown])
    known = ", ".join(spec.classes[:MAX_NAMES_SHOWN]) + ", …" * (len(spec.classes) > MAX_NAMES_SHOWN)
    hints = [f"{name!r:.80}{_closest(str(name)[:80], spec.classes)}" for name in drawn.unknown[:MAX_UNKNOWN]]
    hints += [f"and {len(drawn.unknown) - MAX_UNKNOWN} more"] * (len(drawn.unknown) > MAX_UNKNOWN)
    # others have to be renamed: no YAML can hold them, or they would be values
    names = [name for name in drawn.unknown if isinstance(name, str) and name.isprintable() and not name.isdecimal()]
    spelled = {k.casefold(): k for k in spec.classes}
    draft = {name: spelled.get(name.strip().casefold()) for name in names[:MAX_UNKNOWN]}
    raise DataIssue(IssueKind.CLASSES, f"{annotation.path}: {', '.join(hints)}; classes are {known}", draft)


def _closest(name: str, classes: Sequence[str]) -> str:
    close = get_close_matches(name.strip().lower(), [k.lower() for k in classes], 1)
    return f" (did you mean {next(k for k in classes if k.lower() == close[0])}?)" if close else ""


def _image_name(path: Path, source: Path, dataset_format: str) -> str:
    if dataset_format == "folder" and path != source:
        return path.relative_to(source).with_suffix("").as_posix()
    # Scribbles4All uses Cityscapes' names
    return re.sub("_gt(Coarse|Fine)_labelIds$", "", path.stem) if dataset_format == "cityscapes" else path.stem


def _read_file(file: AnnotationFile) -> tuple[Reader | None, Sequence[tuple[str, Annotation]]]:
    """A file's reader, and what it annotates, by the names that it gives images; SesamError if it cannot be read."""
    readers = [reader for reader in READERS if file_kind(file.path) == reader.SUFFIX]
    for reader in readers:
        try:
            if (annotations := reader.read(file)) is not None:
                return reader, annotations
            continue
        except FAULTS as problem:
            reason = f"{describe_fault(problem):.500}"
        raise SesamError(f"{file.path} cannot be read as {reader.NAME} ({reason}). Correct it, or export it again.")
    if readers:
        names = ", ".join(reader.NAME for reader in readers)
        raise SesamError(
            f"{file.path} is of an unknown format, which is not read. Export one of {names}, or keep it elsewhere."
        )
    return None, []
