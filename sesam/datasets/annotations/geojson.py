"""GeoJSON in pixels, as QuPath exports it, a file per image."""

from collections import Counter
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field

from sesam.datasets.annotation_shapes import Drawing, Shape
from sesam.datasets.annotations.common import AnnotationFile, Entry, Number, located
from sesam.errors import SesamError

NAME, SUFFIX = "GeoJSON", ".json"
Position = Annotated[list[Number], Field(min_length=2)]  # x, y, and what else it has
Line = Annotated[list[Position], Field(min_length=1)]
Lines = Annotated[list[Line], Field(min_length=1)]  # of a polygon: its outline, then its holes
Polygons = Annotated[list[Lines], Field(min_length=1)]
Type = TypeVar("Type")
Coordinates = TypeVar("Coordinates")


class _Geometry(Entry, Generic[Type, Coordinates]):
    type: Type
    coordinates: Coordinates


_KnownGeometry = Annotated[
    _Geometry[Literal["Point"], Position]
    | _Geometry[Literal["MultiPoint", "LineString"], Line]
    | _Geometry[Literal["MultiLineString", "Polygon"], Lines]
    | _Geometry[Literal["MultiPolygon"], Polygons],
    Field(discriminator="type"),
]


class _Feature(Entry):
    geometry: _KnownGeometry | None
    properties: dict[str, Any] | None = None


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """The features of the image that the file is named by; SesamError if they are on a map, not in an image."""
    if (features := _features(file.document)) is None:
        return None
    for entry in (file.document, *features):
        if isinstance(entry, dict) and entry.get("crs") is not None:
            crs = f"crs {entry['crs']!r:.100}"
            raise SesamError(f"{file.path} is GeoJSON in map coordinates ({crs}), which is not read. Export pixels.")
    shapes, skipped = list[Shape](), Counter[str]()
    for number, entry in enumerate(features, 1):
        with located(f"feature {number}"):
            feature = _Feature.model_validate(entry)
            if feature.geometry is None:  # GeoJSON allows it
                skipped["features without a geometry"] += 1
            elif name := _class_name(feature.properties or {}):
                shapes += _shapes(name, feature.geometry.type, feature.geometry.coordinates)
            else:
                skipped["regions without a label"] += 1
    return [(file.name, Drawing(file.path, None, tuple(shapes), skipped=skipped))]


def _features(document: Any) -> list[Any] | None:
    """The features, which older QuPath lists without a collection; None if the document is not GeoJSON."""
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        if not isinstance(document["features"], list):
            raise ValueError("features is not a list")
        return document["features"]
    features = document if isinstance(document, list) else [document]
    return features if any(isinstance(x, dict) and x.get("type") == "Feature" for x in features) else None


def _class_name(properties: dict[str, Any]) -> str:
    """The name of a feature's class, empty if it has none; ValueError if it is not a name."""
    # what QuPath calls name is the object's own
    keys = ("classification",) if "objectType" in properties else ("classification", "label", "class", "name")
    value = next((properties[key] for key in keys if properties.get(key) is not None), "")
    if isinstance(value, dict):  # QuPath's class, or classes within each other
        value = value.get("name") or ": ".join(value.get("names") or [])
    if not isinstance(value, str):
        raise ValueError(f"it has the class {value!r:.60}; expected a name")
    return value


def _shapes(name: str, geometry: str, coordinates: Any) -> list[Shape]:
    if geometry.endswith("Point"):
        return [Shape(name, "point", _points(coordinates if geometry == "MultiPoint" else [coordinates]))]
    parts = coordinates if geometry.startswith("Multi") else [coordinates]
    if geometry.endswith("LineString"):
        return [Shape(name, "line", _points(line)) for line in parts]
    return [Shape(name, "polygon", _points(lines[0]), holes=tuple(map(_points, lines[1:]))) for lines in parts]


def _points(positions: list[list[float]]) -> np.ndarray:
    return np.array([position[:2] for position in positions], float)
