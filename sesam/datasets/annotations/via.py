"""VGG Image Annotator's JSON (VIA 1 and 2): a project, or its annotations alone."""

from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, TypeAdapter

from sesam.datasets.annotation_shapes import Drawing, Kind, Shape, box_corners, ellipse
from sesam.datasets.annotations.common import AnnotationFile, Entry, Number, located
from sesam.errors import SesamError

NAME, SUFFIX = "VGG Image Annotator's JSON", ".json"
KINDS: dict[str, Kind] = {"polygon": "polygon", "polyline": "line", "point": "point", "rect": "box"}
KINDS |= {"circle": "polygon", "ellipse": "polygon"}
CLASS_ATTRIBUTES = ("class", "label", "category", "type", "name")  # the first of these, if regions have several


class _Geometry(Entry):
    name: str
    all_points_x: list[Number] | None = None
    all_points_y: list[Number] | None = None
    x: Number | None = None
    y: Number | None = None
    width: Number | None = None
    height: Number | None = None
    cx: Number | None = None
    cy: Number | None = None
    r: Number | None = None
    rx: Number | None = None
    ry: Number | None = None
    theta: Number = 0.0


class _Region(Entry):
    geometry: _Geometry = Field(alias="shape_attributes")
    attributes: dict[str, Any] = Field(alias="region_attributes")


def _as_list(regions: Any) -> Any:
    """VIA 1 numbers them."""
    return list(regions.values()) if isinstance(regions, dict) else regions


class _Image(Entry):
    filename: str
    regions: Annotated[list[_Region], BeforeValidator(_as_list)]


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """The regions of each image; ValidationError or ValueError if it is not VIA's, or has no clear class."""
    if not isinstance(file.document, dict):
        return None
    if {"attribute", "metadata", "view"} <= file.document.keys():
        raise SesamError(f"{file.path} is VIA 3's project, which is not read. Draw with VIA 2.")
    entries = file.document.get("_via_img_metadata", file.document)
    is_project = entries is not file.document
    if not (is_project or any(isinstance(entry, dict) and "regions" in entry for entry in entries.values())):
        return None
    images = TypeAdapter(dict[str, _Image]).validate_python(entries).values()
    attribute = _class_attribute({key for image in images for region in image.regions for key in region.attributes})
    return [(image.filename, _drawing(file, image, attribute)) for image in images]


def _class_attribute(names: set[str]) -> str:
    """The region attribute that has the class, "" if there is none; ValueError if any of several may be it."""
    usual = [name for known in CLASS_ATTRIBUTES for name in sorted(names) if name.lower() == known]
    if len(names) > 1 and not usual:
        raise ValueError(f"any of the region attributes {', '.join(sorted(names))} may be the class: call it 'class'")
    return next(iter([*usual, *names]), "")


def _drawing(file: AnnotationFile, image: _Image, attribute: str) -> Drawing:
    shapes, unread, unlabeled = list[Shape](), set[str](), 0
    for number, region in enumerate(image.regions, 1):
        with located(f"{image.filename}, region {number}"):
            name, kind = _class_name(region.attributes.get(attribute)), KINDS.get(region.geometry.name)
            unlabeled += not name
            if kind is None:
                unread.add(region.geometry.name)
            elif name:
                shapes.append(_shape(name, kind, region.geometry))
    skipped = {"regions without a label": unlabeled}
    return Drawing(file.path, None, tuple(shapes), tuple(sorted(unread)), skipped=skipped)


def _class_name(value: Any) -> str:
    """The class in an attribute's value, of which a checkbox has {name: true}; empty if there is none."""
    if isinstance(value, dict) and all(isinstance(is_chosen, bool) for is_chosen in value.values()):
        chosen = [name for name, is_chosen in value.items() if is_chosen]
        if len(chosen) > 1:
            raise ValueError(f"it has the classes {', '.join(chosen)}. Keep one of them")
        return "".join(chosen)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"it has the class {value!r:.60}; expected a name")
    return value or ""


def _shape(name: str, kind: Kind, shape: _Geometry) -> Shape:
    """ValueError if it lacks a number."""
    match shape:
        case _Geometry(name="circle", cx=float(x), cy=float(y), r=float(radius)):
            return ellipse(name, x, y, radius, radius)
        case _Geometry(name="ellipse", cx=float(x), cy=float(y), rx=float(radius_x), ry=float(radius_y)):
            return ellipse(name, x, y, radius_x, radius_y, np.rad2deg(shape.theta))
    return Shape(name, kind, _points(shape))


def _points(shape: _Geometry) -> np.ndarray:
    """The points (N, 2) of a shape; ValueError if it lacks a number."""
    match shape:
        case _Geometry(all_points_x=[*xs], all_points_y=[*ys]) if len(xs) == len(ys) and shape.name.startswith("poly"):
            return np.array([xs, ys], float).T
        case _Geometry(name="point", cx=float(x), cy=float(y)):
            return np.array([[x, y]])
        case _Geometry(name="rect", x=float(x), y=float(y), width=float(width), height=float(height)):
            return box_corners(x, y, x + width, y + height)
    raise ValueError(f"{shape.name} without its numbers")
