"""COCO's JSON: polygons, run lengths, boxes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from sesam.artifacts.atomic_io import write_json
from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import AnnotationFile, Entry, ImageRegions, Number, Pixels, runs_to_mask
from sesam.errors import SesamError
from sesam.geometry.rle import rle_to_counts

NAME, SUFFIX = "COCO's JSON", ".json"


Id = Annotated[int, Field(strict=True)] | str


class _Rle(Entry):
    counts: list[Annotated[int, Field(strict=True, ge=0)]] | Annotated[str, Field(pattern="^[0-o]+$")]
    size: tuple[Pixels, Pixels]


class _Image(Entry):
    id: Id
    file_name: str
    width: Pixels | None = None
    height: Pixels | None = None


class _Annotation(Entry):
    image_id: Id
    category_id: Id | None = None
    segmentation: list[list[Number]] | _Rle | None = None
    bbox: Annotated[tuple[Number, Number, Number, Number] | None, BeforeValidator(lambda box: box or None)] = None
    keypoints: list[Number] | None = None


class _Category(Entry):
    id: Id
    name: str


class _Document(Entry):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """Polygons, run lengths, and boxes where there is neither; ValidationError or ValueError if it is not COCO's.

    Keypoints are not read; with a segmentation of the same object they are left out.
    """
    if not (isinstance(file.document, dict) and "categories" in file.document):
        return None
    if {"items", "categories"} <= file.document.keys():
        raise SesamError(f"{file.path} is Datumaro's JSON, which is not read. Export COCO's, or CVAT for images.")
    if not {"images", "annotations"} & file.document.keys():  # Label Studio's notes.json, beside YOLO's text
        return []
    if any("segments_info" in entry for entry in file.document.get("annotations", []) if isinstance(entry, dict)):
        raise SesamError(f"{file.path} is COCO's panoptic JSON, which is not read. Export instances.")
    document = _Document.model_validate(file.document)
    names = {category.id: category.name for category in document.categories}
    shapes: dict[int | str, list[Shape]] = {image.id: [] for image in document.images}
    unread: dict[int | str, tuple[str, ...]] = {}
    unlabeled = Counter[int | str]()
    sizes = {x.id: (x.height, x.width) if x.height and x.width else None for x in document.images}
    if len(names) < len(document.categories) or len(sizes) < len(document.images):
        raise ValueError("two images or two categories of one id")
    for annotation in document.annotations:
        image_id, segmentation = annotation.image_id, annotation.segmentation
        if annotation.category_id is None and image_id in shapes:
            unlabeled[image_id] += 1
            continue
        if image_id not in shapes or annotation.category_id not in names:
            raise ValueError(f"an annotation of image {image_id} or category {annotation.category_id}: it is missing")
        if isinstance(segmentation, _Rle) and segmentation.size != (sizes[image_id] or segmentation.size):
            raise ValueError(f"a mask of {segmentation.size[1]}x{segmentation.size[0]} pixels")
        if annotation.keypoints and not segmentation:
            unread[image_id] = ("keypoints",)
        else:
            shapes[image_id] += _shapes(annotation, names[annotation.category_id])
    return [
        (
            image.file_name,
            Drawing(
                file.path,
                sizes[image.id],
                tuple(shapes[image.id]),
                unread.get(image.id, ()),
                skipped={"regions without a label": unlabeled[image.id]},
            ),
        )
        for image in document.images
    ]


def _shapes(annotation: _Annotation, name: str) -> list[Shape]:
    if isinstance(annotation.segmentation, _Rle):
        return [Shape(name, "mask", pixels=partial(_mask, annotation.segmentation))]
    segmentation = [flat for flat in annotation.segmentation or [] if flat]
    if segmentation:
        if any(len(flat) % 2 for flat in segmentation):
            raise ValueError("a polygon with an odd number of coordinates")
        outlines = [np.reshape(flat, (-1, 2)) for flat in segmentation]
        return [Shape(name, "polygon", outline) for outline in outlines]
    if annotation.bbox:
        left, top, width, height = annotation.bbox
        return [Shape(name, "box", box_corners(left, top, left + width, top + height))]
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
