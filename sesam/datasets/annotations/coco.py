"""COCO's JSON: polygons, run lengths, boxes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag

from sesam.artifacts.atomic_io import write_json
from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import (
    AnnotationFile,
    AsInt,
    Entry,
    ImageRegions,
    Number,
    Pixels,
    located,
    runs_to_mask,
)
from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_counts

NAME, SUFFIX = "COCO's JSON", ".json"
Item = TypeVar("Item")

Id = Annotated[Annotated[int, Field(strict=True)] | str, AsInt]


class _Rle(Entry):
    counts: list[Annotated[int, Field(strict=True, ge=0)]] | Annotated[str, Field(pattern="^[0-o]+$")]
    size: tuple[Pixels, Pixels]


def _as_polygons(value: Any) -> Any:
    """[x, y, x, y, …] as [[x, y, x, y, …]]; ValueError if it may be a box, or is a list of points."""
    if value == []:
        return value
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        if isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
            raise ValueError("points are not a polygon; expected [[x, y, x, y, x, y, …]]")
        return value
    if 0 < len(value) <= 4:
        raise ValueError(f"{len(value)} numbers are not a polygon; expected [[x, y, x, y, x, y, …]]")
    return [value]


Polygons = Annotated[list[list[Number]], BeforeValidator(_as_polygons)]
Segmentation = Annotated[
    Annotated[Polygons, Tag("polygons")] | Annotated[_Rle, Tag("run lengths")],
    Discriminator(lambda value: "run lengths" if isinstance(value, dict) else "polygons"),
]


class _Image(Entry):
    id: Id
    file_name: str
    width: Pixels | None = None
    height: Pixels | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        return (self.height, self.width) if self.height and self.width else None


class _Annotation(Entry):
    image_id: Id
    category_id: Id | None = None
    segmentation: Segmentation | None = None
    bbox: Annotated[tuple[Number, Number, Number, Number] | None, BeforeValidator(lambda box: box or None)] = None
    keypoints: list[Number] | None = None
    attributes: Any = None  # each tool's own

    @property
    def has_mask(self) -> bool:
        return isinstance(self.segmentation, _Rle) or any(self.segmentation or ())

    @property
    def rotation(self) -> float:
        """Of the box, clockwise in degrees, where CVAT writes it."""
        value = self.attributes.get("rotation") if isinstance(self.attributes, dict) else None
        return float(value) if isinstance(value, int | float) else 0.0


class _Category(Entry):
    id: Id
    name: str


class _Document(Entry):
    images: list[_Image]
    annotations: list[dict[str, Any]]
    categories: list[_Category]


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """Polygons, run lengths, and boxes where there is neither; ValidationError or ValueError if it is not COCO's.

    Keypoints are not read; with a segmentation of the same object they are left out.
    """
    if isinstance(file.document, list) and any(isinstance(x, dict) and "category_id" in x for x in file.document):
        text = "has COCO's annotations without images and categories, which is not read. Export all three"
        raise SesamError(f"{file.path} {text}.")
    if not (isinstance(file.document, dict) and "categories" in file.document):
        return None
    if {"items", "categories"} <= file.document.keys():
        raise SesamError(f"{file.path} is Datumaro's JSON, which is not read. Export COCO's, or CVAT for images.")
    if not {"images", "annotations"} & file.document.keys():  # Label Studio's notes.json, beside YOLO's text
        return []
    document = _Document.model_validate(file.document)
    if any("segments_info" in entry for entry in document.annotations):
        raise SesamError(f"{file.path} is COCO's panoptic JSON, which is not read. Export instances.")
    images = {image.id: image for image in document.images}
    names = {category.id: category.name for category in document.categories}
    if len(names) < len(document.categories) or len(images) < len(document.images):
        raise ValueError("two images or two categories of one id")
    shapes: dict[int | str, list[Shape]] = {image_id: [] for image_id in images}
    unread: dict[int | str, tuple[str, ...]] = {}
    skipped: dict[int | str, Counter[str]] = {image_id: Counter() for image_id in images}
    for number, entry in enumerate(document.annotations, 1):
        with located(where := f"annotation {entry.get('id', f'number {number}')!s:.60}"):
            annotation = _Annotation.model_validate(entry)
            image = _of_id(images, annotation.image_id, "image")
            if annotation.category_id is None:
                skipped[image.id]["regions without a label"] += 1
            elif annotation.keypoints and not annotation.has_mask:
                unread[image.id] = ("keypoints",)
            else:
                name = _of_id(names, annotation.category_id, "category")
                made = [shape._replace(where=where) for shape in _shapes(annotation, name, image.size)]
                shapes[image.id] += made
                skipped[image.id]["annotations without a segmentation or box"] += not made
    return [
        (
            image.file_name,
            Drawing(
                file.path,
                image.size,
                tuple(shapes[image.id]),
                unread.get(image.id, ()),
                skipped=skipped[image.id],
            ),
        )
        for image in document.images
    ]


def _of_id(entries: Mapping[int | str, Item], entry_id: int | str, kind: str) -> Item:
    """The image or category of an id; ValueError if there is none."""
    if entry_id in entries:
        return entries[entry_id]
    hint = " (text is not a number)" if str(entry_id) in map(str, entries) else ""
    raise ValueError(f"no {kind} has the id {entry_id!r:.60}{hint}")


def _shapes(annotation: _Annotation, name: str, size: tuple[int, int] | None) -> list[Shape]:
    if isinstance(annotation.segmentation, _Rle):
        if size not in (None, annotation.segmentation.size):
            raise ValueError("a mask of {1}x{0} pixels".format(*annotation.segmentation.size))
        return [Shape(name, "mask", pixels=partial(_mask, annotation.segmentation))]
    segmentation = [flat for flat in annotation.segmentation or [] if flat]
    if segmentation:
        if any(len(flat) % 2 for flat in segmentation):
            raise ValueError("a polygon with an odd number of coordinates")
        return [Shape(name, "polygon", np.reshape(flat, (-1, 2))) for flat in segmentation]
    if annotation.bbox:
        left, top, width, height = annotation.bbox
        return [Shape(name, "box", box_corners(left, top, left + width, top + height, annotation.rotation))]
    return []


def _mask(rle: _Rle, size: tuple[int, int]) -> np.ndarray:
    counts = rle_to_counts(rle.counts).tolist() if isinstance(rle.counts, str) else rle.counts
    height, width = rle.size
    if rle.size != size:  # before anything of that size is made
        raise ValueError(f"a mask of {width}x{height} pixels")
    return runs_to_mask(counts, width, height).T  # column by column


def write(images: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """out/instances.json with run lengths; category ids are class ids from 1."""
    records, annotations = [], list[dict[str, object]]()
    for number, image in enumerate(images, 1):
        size = {"width": image.record.width, "height": image.record.height}
        records.append({"id": number, "file_name": image.name, **size})
        for class_name, region, attributes in image.regions:
            height, width = region.mask.shape
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": classes.index(class_name) + 1}
            segmentation = {"size": list(image.shape), "counts": region.rle(image.shape)}
            box = {"area": region.area, "bbox": [region.left, region.top, width, height], "iscrowd": 0}
            annotations.append({**ids, "segmentation": segmentation, **box, "attributes": attributes})
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    write_json(out / "instances.json", {"images": records, "annotations": annotations, "categories": categories})
