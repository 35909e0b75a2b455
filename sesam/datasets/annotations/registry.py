"""The annotations of a folder or a file, in every known format. A new format is a module and an entry here."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from sesam.datasets.annotation_shapes import Drawing
from sesam.datasets.annotations import coco, cvat, label_studio, labelme, png, scribblesup, whats_the_point
from sesam.datasets.annotations.common import Annotation, AnnotationFile, LabelSpec, match_image_id
from sesam.datasets.data_issues import DataIssue, IssueKind
from sesam.datasets.layouts import files_below
from sesam.errors import SesamError, describe_validation_error


class Reader(Protocol):
    """A format that annotations are read from. SUFFIX: of its files, in lower case."""

    NAME: str
    SUFFIX: str

    def read(self, file: AnnotationFile) -> Sequence[tuple[str, Annotation]] | None:
        """A file's annotations, each with the image's name; None, ValueError, KeyError or TypeError: another format."""


# the first that returns annotations; the last two take every XML and every JSON mapping, so new ones come before
READERS: tuple[Reader, ...] = (png, cvat, label_studio, labelme, coco, scribblesup, whats_the_point)
EXPORTERS = {"cvat": cvat.write, "label-studio": label_studio.write, "labelme": labelme.write, "coco": coco.write}


def is_annotated(folder: Path) -> bool:
    """Whether a folder exists and has a file that may be an annotation."""
    return not {path.suffix.lower() for path in files_below(folder)}.isdisjoint(reader.SUFFIX for reader in READERS)


def find_annotations(source: Path, dataset_format: str, ids: Collection[str]) -> dict[str, Annotation]:
    """The annotations at `source`, a file or folder, by image id; those of no image of `ids` by their name for it.

    PNG's paths end in the image's id, ScribbleSup's are it. SesamError if an image has two, or a file is unreadable.
    """
    if not source.is_dir() and source.suffix.lower() not in (".json", ".xml"):
        raise SesamError(f"weak_labels.path: {source} is neither a folder of PNG, XML or JSON files nor such a file.")
    annotations: dict[str, Annotation] = {}
    photographs: set[Path | None] = set()
    nested: set[str] = set()  # images that a PNG's path ends in
    paths = files_below(source) if source.is_dir() else [source]
    files = [AnnotationFile(path, _image_name(path, source, dataset_format)) for path in paths]
    # PNGs last, because they may be the images that labelme's files are of; those named by an id before nested ones
    for file in sorted(files, key=lambda file: (file.path.suffix.lower() == ".png", file.name not in ids)):
        if file.path in photographs or (dataset_format == "cityscapes" and file.path.stem.endswith("_polygons")):
            continue  # Cityscapes' polygons are beside its label PNGs, with the same content
        for name, annotation in _read_file(file):
            image_id = name
            if isinstance(annotation, Drawing):  # tools name images in their own ways
                photographs.add(annotation.photograph)
                image_id = match_image_id(str(annotation.photograph or name), ids) or name
            elif isinstance(annotation, png.LabelPng) and dataset_format == "folder" and name not in ids:
                image_id = match_image_id(f"{name}.png", ids) or name
                # the image may have another annotation, of which this is the photograph: exports have both
                image_id = name if image_id in annotations and image_id not in nested else image_id
                nested.add(image_id)
            if image_id in annotations and image_id in ids:
                other = annotations[image_id].path
                raise SesamError(f"{annotation.path} and {other} both annotate {image_id}. Remove one.")
            annotations[image_id] = annotation
    return annotations


def read_annotation(annotation: Annotation, spec: LabelSpec) -> np.ndarray:
    """Weak labels (H, W) uint8, 255 = unlabeled; DataIssue: another size, not a class, or it cannot be read."""
    labels, unknown = annotation.draw(spec)
    if unknown:
        raise DataIssue(IssueKind.VALUES, f"{annotation.path}: {', '.join(unknown)}")
    return labels


def _image_name(path: Path, source: Path, dataset_format: str) -> str:
    if dataset_format == "folder" and path != source:
        return path.relative_to(source).with_suffix("").as_posix()
    # Scribbles4All uses Cityscapes' names
    return re.sub("_gt(Coarse|Fine)_labelIds$", "", path.stem) if dataset_format == "cityscapes" else path.stem


def _read_file(file: AnnotationFile) -> Sequence[tuple[str, Annotation]]:
    """What a file annotates, by the names that it gives images; SesamError if it cannot be read."""
    readers = [reader for reader in READERS if file.path.suffix.lower() == reader.SUFFIX]
    for reader in readers:
        try:
            if (annotations := reader.read(file)) is not None:
                return annotations
            continue
        except ValidationError as problem:
            reason = describe_validation_error(problem)[0]
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SesamError(f"{file.path} cannot be read as {reader.NAME} ({reason}). Export it again.")
    if readers:
        names = ", ".join(reader.NAME for reader in readers)
        raise SesamError(f"{file.path} is not an annotation file that can be read ({names}).")
    return []
