"""The annotations of a folder or a file, in every known format. A new format is a module and an entry here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import ValidationError

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
from sesam.datasets.annotations.common import Annotation, AnnotationFile, Drawn, LabelSpec, file_kind
from sesam.datasets.annotations.image_names import ImageNames, split_of
from sesam.datasets.annotations.mask_folders import read_mask_folder
from sesam.datasets.data_issues import MAX_NAMES_SHOWN, DataIssue, IssueKind
from sesam.datasets.layouts import IMAGE_SUFFIXES, TILES_INDEX, list_files
from sesam.errors import SesamError, describe_validation_error
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
    label_studio,
    labelme,
    coco,
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
        hint = " Unpack it." if source.suffix.lower() in (".zip", ".gz", ".tar", ".7z", ".rar") else ""
        expected = "a folder of PNG, XML, JSON or YOLO's text files, or an XML or JSON file"
        raise SesamError(f"weak_labels.path: {source} is not {expected}.{hint}")
    annotations: dict[str, Annotation] = {}
    of_own = set[str]()  # images annotated by formats with a file for each
    called: dict[str, str] = {}  # what the file that annotates an image calls it
    for image_id, name, annotation in _read_all(source, dataset_format, names, classes):
        has_own = isinstance(annotation, Drawing) and annotation.own_name is not None
        if image_id in names.train_ids and image_id in annotations:
            both = annotations[image_id], annotation
            empty = [isinstance(x, Drawing) and x.is_empty for x in both]  # as of who had other images of a project
            is_copy = has_own and image_id in of_own  # a file with the name of the image that it was copied from
            may_both = any(empty) or any(isinstance(x, Drawing) and x.only_prompts for x in both)
            if both[0].path == annotation.path or is_copy or not may_both:
                raise SesamError(_both_annotate(image_id, (both[0].path, called[image_id]), (annotation.path, name)))
            if empty[1]:
                continue
            annotation = annotation if empty[0] else WithPrompts(annotation.path, both)
        annotations[image_id], called[image_id] = annotation, name
        of_own |= {image_id} if has_own else set()
    return annotations


def _read_all(
    source: Path, dataset_format: str, names: ImageNames, classes: Sequence[str]
) -> Iterator[tuple[str, str, Annotation]]:
    """Each annotation with its image's id, and the name that its file gives the image."""
    own_folders = {k.split("/")[0] for k in names.train_ids if "/" in k}  # of images, which may be called as classes
    no_folders = [k for k in classes if k not in own_folders]
    if source.is_dir() and (masks := read_mask_folder(source, no_folders)) is not None:
        yield from ((names.match(name) or name, name, annotation) for name, annotation in masks)
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
            yield image_id, name, annotation


def _both_annotate(image_id: str, *entries: tuple[Path, str]) -> str:
    (first, one), (second, other) = entries
    if first == second:
        return f"{first} annotates {image_id} twice, as {one} and as {other}. Keep one of the two entries."
    text = f"{first} ({one}) and {second} ({other}) both annotate {image_id}. Keep one, and photographs elsewhere."
    is_mask = file_kind(first) == file_kind(second) == png.SUFFIX and first.parent != second.parent
    return text + " A folder of masks of one class must have its name." * is_mask


def read_annotation(annotation: Annotation, spec: LabelSpec) -> Drawn:
    """An annotation as labels; DataIssue: another size, not a class, or it cannot be read."""
    drawn = annotation.draw(spec)
    if not drawn.unknown:
        return drawn
    if not isinstance(annotation, Drawing):
        raise DataIssue(IssueKind.VALUES, f"{annotation.path}: {', '.join(drawn.unknown)}")
    known = ", ".join(spec.classes[:MAX_NAMES_SHOWN]) + ", …" * (len(spec.classes) > MAX_NAMES_SHOWN)
    hints = [f"{name}{_closest(name, spec.classes)}" for name in drawn.unknown]
    raise DataIssue(IssueKind.CLASSES, f"{annotation.path}: {', '.join(hints)}; classes are {known}")


def _closest(name: str, classes: Sequence[str]) -> str:
    close = get_close_matches(name.strip("'\" ").lower(), [k.lower() for k in classes], 1)
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
        except ValidationError as problem:
            reason = describe_validation_error(problem)[0]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SesamError(f"{file.path} cannot be read as {reader.NAME} ({reason}). Export it again.")
    if readers:
        names = ", ".join(reader.NAME for reader in readers)
        raise SesamError(
            f"{file.path} is of an unknown format, which is not read. Export one of {names}, or keep it elsewhere."
        )
    return None, []
