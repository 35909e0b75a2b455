"""labelme's JSON, a file per image."""

import base64
import os
from collections.abc import Iterable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageDraw
from pydantic import BeforeValidator, Field

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.image_io import LABEL_FORMATS, open_image
from sesam.datasets.annotation_shapes import (
    MAX_PIXELS_OUTSIDE,
    Drawing,
    Kind,
    Shape,
    box_corners,
    clip_outline,
    ellipse_outline,
)
from sesam.datasets.annotations.common import (
    AnnotationFile,
    Entry,
    ImageRegions,
    LabeledRegion,
    Pixels,
    Point,
    located,
    slices,
)
from sesam.errors import SesamError

NAME, SUFFIX = "labelme's JSON", ".json"
KINDS: dict[str, Kind] = {"polygon": "polygon", "oriented_rectangle": "box", "rotation": "box"}
NUM_POINTS = {"rectangle": (2, 4), "circle": (2,), "mask": (2, 1)}  # X-AnyLabeling gives all corners
IGNORED = "__ignore__"  # labelme's own name of what is not a class
KINDS |= {"line": "line", "linestrip": "line", "point": "point", "points": "point"}


def _class_name(label: Any) -> Any:
    """A number is a name, as in dataset.map."""
    if type(label) is not int and not isinstance(label, str):
        raise ValueError("expected a class name")
    return str(label)


class _Shape(Entry):
    label: Annotated[str, BeforeValidator(_class_name)]
    points: list[Point]
    shape_type: str | None = None  # labelme 3 had polygons alone
    mask: str | None = None


class _Document(Entry):
    shapes: list[Any]
    image_path: str = Field(alias="imagePath")
    image_height: Pixels | None = Field(None, alias="imageHeight")
    image_width: Pixels | None = Field(None, alias="imageWidth")


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """The shapes of its image; ValidationError if it is not labelme's."""
    if not (isinstance(file.document, dict) and "shapes" in file.document):
        return None
    document = _Document.model_validate(file.document)
    height, width = document.image_height, document.image_width
    size = (height, width) if height and width else None
    shapes, unread, ignored = list[Shape](), set[str](), 0
    for number, entry in enumerate(document.shapes, 1):
        with located(where := f"shape {number}"):
            shape = _Shape.model_validate(entry)
            if shape.label == IGNORED:
                ignored += 1
            elif (read_shape := _read_shape(shape)) is not None:
                shapes.append(read_shape._replace(where=where))
            else:
                unread.add(shape.shape_type or "")
    # beside the file, if it is a name alone
    photograph = os.path.normpath(file.path.parent / document.image_path.replace("\\", "/"))
    skipped = {f"shapes called {IGNORED}": ignored}
    drawing = Drawing(file.path, size, tuple(shapes), tuple(sorted(unread)), file.path.stem, skipped)
    return [(photograph, drawing)]


def _read_shape(shape: _Shape) -> Shape | None:
    """None if its kind is not read; ValueError if it lacks points or a mask."""
    name, kind, points = shape.label, shape.shape_type or "polygon", np.array(shape.points, float).reshape(-1, 2)
    if kind in KINDS:
        return Shape(name, KINDS[kind], points, partial(_polygon, points) if kind == "polygon" else None)
    if kind not in NUM_POINTS:
        return None
    if len(points) not in NUM_POINTS[kind]:
        raise ValueError(f"a {kind} of {len(points)} points; expected {NUM_POINTS[kind][0]}. Draw it again")
    if kind == "rectangle":
        return Shape(name, "box", box_corners(*points.min(0), *points.max(0)))
    if kind == "circle":
        return _circle(name, points[0], float(np.linalg.norm(points[1] - points[0])))
    if shape.mask is None:
        raise ValueError("a mask without its pixels. Draw it again")
    return Shape(name, "mask", pixels=partial(_mask, shape.mask, points[0]))


def _polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """As labelme draws it: corners without fractions of pixels, and with all pixels that its outline goes through."""
    drawn = Image.new("L", size[::-1])
    if len(points) >= 3:
        near = clip_outline(points, size).ravel().tolist()
        if len(near) >= 6:
            ImageDraw.Draw(drawn).polygon(near, fill=1, outline=1)
    return np.array(drawn) > 0


def _circle(name: str, center: np.ndarray, radius: float) -> Shape:
    around = box_corners(*(center - radius), *(center + radius))
    return Shape(name, "polygon", around, partial(_disc, center, radius))


def _disc(center: np.ndarray, radius: float, size: tuple[int, int]) -> np.ndarray:
    if radius > MAX_PIXELS_OUTSIDE:  # Pillow takes half a minute for a radius of a million pixels
        return _polygon(ellipse_outline(center[0], center[1], radius, radius), size)
    drawn = Image.new("L", size[::-1])
    ImageDraw.Draw(drawn).ellipse([*(center - radius), *(center + radius)], fill=1, outline=1)
    return np.array(drawn) > 0


def _mask(content: str, corner: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    try:
        with open_image(Path("its PNG"), base64.b64decode(content, validate=True), LABEL_FORMATS) as image:
            if image.mode not in ("1", "L"):
                raise ValueError(f"a mask in mode {image.mode}; expected one gray channel")
            window = np.array(image) > 0
    except SesamError as problem:
        raise ValueError(f"a damaged mask: {problem}") from None
    left, top = corner.astype(int)  # without their fractions, as labelme writes it into labels
    height, width = window.shape
    mask = np.zeros(size, bool)
    mask[slices(left, top, width, height, size)] = window
    return mask


def write(images: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """A file with the image's name, in the folders of its id. labelme opens it, and expects the image beside it."""
    for image in images:
        document: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "imageData": None,
            "imagePath": Path(image.name).name,
        }
        document |= {"imageHeight": image.record.height, "imageWidth": image.record.width}
        document["shapes"] = [_to_shape(region) for region in image.regions]
        name = PurePosixPath(image.record.id).with_name(Path(image.record.image).stem + ".json")
        write_json(out / name, document)


def _to_shape(labeled: LabeledRegion) -> dict[str, Any]:
    file, region = BytesIO(), labeled.region
    Image.fromarray(region.mask.astype(np.uint8)).save(file, "PNG")
    height, width = region.mask.shape
    points = [[region.left, region.top], [region.left + width - 1, region.top + height - 1]]
    description = ", ".join(f"{key} {value}" for key, value in labeled.attributes.items())
    shape = {"label": labeled.class_name, "points": points, "group_id": None, "description": description}
    return shape | {"shape_type": "mask", "flags": {}, "mask": base64.b64encode(file.getvalue()).decode()}
