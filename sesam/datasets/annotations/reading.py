"""Weak labels that annotators made, in the form in which they are published or a tool exports them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import ValidationError

from sesam.artifacts.atomic_io import read_bytes
from sesam.datasets.annotation_shapes import FAR, Drawing, clip_to_bounds, draw_shapes
from sesam.datasets.annotations import coco, cvat, label_studio, labelme
from sesam.datasets.annotations.common import match_image_id
from sesam.datasets.data_issues import SIZES, UNREADABLE, VALUES, DataIssue
from sesam.datasets.label_maps import LabelMap, read_values
from sesam.datasets.layouts import files_below
from sesam.errors import SesamError
from sesam.geometry.strokes import draw_stroke
from sesam.labels import IGNORE_INDEX

# what the names of label files may end in, after the image's id; Scribbles4All has Cityscapes' own names
JSON = ("What's the Point", "Label Studio", "labelme", "COCO")
ENDINGS = {"cityscapes": ("_gtCoarse_labelIds", "_gtFine_labelIds", "")}
# what ScribbleSup calls VOC's classes
SCRIBBLESUP = {
    "plane": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "plant": "pottedplant",
    "monitor": "tvmonitor",
}


@dataclass(frozen=True)
class Annotation:
    """What annotators made of one image: a file, or what a file of several images has for it.

    clicks: of What's the Point. drawing: of an annotation tool. image: where labelme says that the image lies.
    """

    path: Path
    clicks: Any = None
    drawing: Drawing | None = None
    image: Path | None = None


def is_annotated(folder: Path) -> bool:
    """Whether a folder is there and has a file that may be an annotation."""
    return folder.is_dir() and any(path.suffix.lower() in (".png", ".xml", ".json") for path in files_below(folder))


def find_annotations(origin: Path, kind: str, ids: Collection[str]) -> dict[str, Annotation]:
    """The annotations at `origin` by image id; those of no image of `ids` by the name that they give it.

    origin: a file or a folder, at any depth, of what `_of_file` reads; PNGs and ScribbleSup's XML are named by the
    image's id, or a PNG's path ends in it. ids: of the images to be found, for tools name them in their own ways.
    SesamError if there are two for an image, or a file that cannot be read.
    """
    if not origin.is_dir() and origin.suffix.lower() not in (".json", ".xml"):
        raise SesamError(
            f"{origin} (weak_labels.source) is neither a folder of PNG, XML or JSON files nor such a file."
        )
    found: dict[str, Annotation] = {}
    photographs: set[Path | None] = set()
    paths = files_below(origin) if origin.is_dir() else [origin]
    # PNGs last, for they may be the images that labelme's files are of
    for path in sorted(paths, key=lambda path: path.suffix.lower() == ".png"):
        if path in photographs:
            continue
        for k, annotation in _read_file(path, origin, kind, ids):
            if k in found and k in ids:
                raise SesamError(f"{path} and {found[k].path} both annotate {k}. Remove one.")
            found[k] = annotation
            photographs.add(annotation.image)
    return _at_any_depth(found, ids) if kind == "folder" else found


def _at_any_depth(found: Mapping[str, Annotation], ids: Collection[str]) -> dict[str, Annotation]:
    """`found`, with a PNG whose path ends in an image's id as that image's annotation, if the image has no other.

    It may have one, of which the PNG is the photograph: tools put both into an export.
    """
    every: dict[str, Annotation] = {}
    for name, annotation in found.items():
        k = match_image_id(f"{name}.png", ids) if annotation.path.suffix.lower() == ".png" else name
        if k is None or k in found:
            k = name
        elif k in every:
            raise SesamError(f"{annotation.path} and {every[k].path} both annotate {k}. Remove one.")
        every[k] = annotation
    return every


def _read_file(path: Path, origin: Path, kind: str, ids: Collection[str]) -> list[tuple[str, Annotation]]:
    """What a file annotates: a PNG or ScribbleSup's XML one image; What's the Point and tools' exports several."""
    name = path.relative_to(origin).with_suffix("").as_posix() if kind == "folder" and path != origin else path.stem
    if kind == "cityscapes" and name.endswith("_polygons"):
        return []  # beside each of its label PNGs, which say the same
    end = next(end for end in ENDINGS.get(kind, ("",)) if name.endswith(end))
    by_name = [(name.removesuffix(end), Annotation(path))]
    if path.suffix.lower() == ".png":
        return by_name
    if path.suffix.lower() == ".xml":
        root = _read(path, lambda content: ElementTree.fromstring(content))
        if root is None or root.tag != "annotations":
            return by_name  # ScribbleSup's; what is wrong with it is told with the faults of the others
        drawings = _read_tool(path, "CVAT for images 1.1", lambda: cvat.read(root))
    elif path.suffix.lower() == ".json":
        value = _read(path, json.loads)
        if isinstance(value, list):
            drawings = _read_tool(path, "Label Studio's JSON", lambda: label_studio.read(value))
        elif isinstance(value, dict) and "shapes" in value:
            drawings = _read_tool(path, "labelme's JSON", lambda: labelme.read(value))
            ((name, drawing),) = drawings
            image = path.parent / name  # beside the file, if it is a name alone
            return [(match_image_id(image.as_posix(), ids) or name, Annotation(path, drawing=drawing, image=image))]
        elif isinstance(value, dict) and "categories" in value:
            drawings = _read_tool(path, "COCO's JSON", lambda: coco.read(value))
        elif isinstance(value, dict):
            return [(k, Annotation(path, clicks)) for k, clicks in value.items()]
        else:
            raise SesamError(f"{path} is none of the JSON files that can be read: those of {', '.join(JSON)}.")
    else:
        return []
    return [(match_image_id(name, ids) or name, Annotation(path, drawing=one)) for name, one in drawings]


def _read(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """A file's content parsed; SesamError if that is no JSON, None if it is no XML."""
    content = read_bytes(path)
    try:
        return parse(content)
    except (ElementTree.ParseError, LookupError):  # LookupError: an unknown encoding
        return None
    except (ValueError, RecursionError) as problem:
        raise SesamError(f"{path} cannot be read ({problem}). Export it again.") from None


def _read_tool(path: Path, form: str, read: Callable[[], list[tuple[str, Drawing]]]) -> list[tuple[str, Drawing]]:
    try:
        return read()
    except ValidationError as problem:
        (first, *_) = problem.errors()
        reason = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    raise SesamError(f"{path} cannot be read as {form} ({reason}). Export it again.")


def read_annotation(
    annotation: Annotation,
    size: tuple[int, int],
    classes: Sequence[str],
    meaning: LabelMap,
    thickness: int,
    radius: int,
) -> np.ndarray:
    """An annotation of an image of `size` (H, W) as weak labels (H, W) uint8, 255 = unlabeled.

    thickness: of the strokes drawn for XML scribbles, radius: of the discs drawn for clicks, both pixels. Faulty if it
    cannot be read, has another size or names what is no class.
    """
    if annotation.drawing is not None:
        drawn, strange = draw_tool(annotation.path, annotation.drawing, size, classes, thickness, radius)
    elif annotation.clicks is not None:
        drawn, strange = draw_points(annotation, size, len(classes), radius)
    elif annotation.path.suffix.lower() == ".xml":
        drawn, strange = draw_strokes(annotation.path, size, classes, thickness)
    else:
        try:
            drawn, strange = meaning.class_ids(read_values(annotation.path, meaning))
        except SesamError as problem:
            raise DataIssue(UNREADABLE, str(problem)) from None
        _check_size(annotation.path, drawn.shape, size)
    if strange:
        raise DataIssue(VALUES, f"{annotation.path}: {', '.join(strange)}")
    return drawn


def draw_tool(
    path: Path, drawing: Drawing, size: tuple[int, int], classes: Sequence[str], thickness: int, radius: int
) -> tuple[np.ndarray, list[str]]:
    """A tool's drawing of an image of `size` (H, W) as labels, and its class names and shapes that are none."""
    _check_size(path, drawing.size, size)
    try:
        drawn, strange = draw_shapes(drawing, classes, thickness, radius)
    except ValueError as problem:
        raise DataIssue(UNREADABLE, f"{path} has {problem}") from None
    return drawn, strange + [f"the shape {kind}" for kind in drawing.unread]


def draw_strokes(
    path: Path, size: tuple[int, int], classes: Sequence[str], thickness: int
) -> tuple[np.ndarray, list[str]]:
    """ScribbleSup's XML (Lin et al. 2016): each `polygon`, an open line of points, as a stroke of its class.

    Some of its points lie outside the image; what is drawn there is lost. Returns the labels (H, W) uint8 and the
    tags that name no class; Faulty if it cannot be read or is of another size.
    """
    try:
        root = ElementTree.parse(path).getroot()
        its_size = (int(root.findtext("size/height", "")), int(root.findtext("size/width", "")))
        lines = [(s.findtext("tag", "").strip(), [_pixel(point) for point in s.findall("point")]) for s in root]
    except (OSError, ElementTree.ParseError, TypeError, ValueError, LookupError, OverflowError) as problem:
        raise DataIssue(UNREADABLE, f"{path} cannot be read as ScribbleSup's XML ({problem})") from None
    _check_size(path, its_size, size)
    drawn = np.full(size, IGNORE_INDEX, np.uint8)
    strange = set()
    for tag, points in lines:
        name = SCRIBBLESUP.get(tag, tag)
        if not points:
            continue
        if name not in classes:
            strange.add(repr(tag))
            continue
        drawn[draw_stroke(size, clip_to_bounds(np.array(points), size), thickness)] = classes.index(name)
    return drawn, sorted(strange)


def draw_points(
    annotation: Annotation, size: tuple[int, int], classes: int, radius: int
) -> tuple[np.ndarray, list[str]]:
    """What's the Point (Bearman et al. 2016): a disc of its class for each click {x, y, cls}.

    Returns the labels (H, W) uint8 and the numbers that are no class; Faulty if the clicks are none.
    """
    try:
        clicks = [tuple(int(click[key]) for key in ("x", "y", "cls")) for click in annotation.clicks]
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        text = f"clicks in {annotation.path} that are no {{x, y, cls}} of numbers ({type(problem).__name__}: {problem})"
        raise DataIssue(UNREADABLE, text) from None
    drawn = np.full(size, IGNORE_INDEX, np.uint8)
    for x, y, k in clicks:
        if 0 <= k < classes and -FAR < x < size[1] + FAR and -FAR < y < size[0] + FAR:
            cv2.circle(drawn, (x, y), radius, k, cv2.FILLED)
    return drawn, sorted({str(k) for _, _, k in clicks if not 0 <= k < classes})


def _check_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != tuple(size):
        raise DataIssue(SIZES, f"{path} is {found[1]}x{found[0]}, its image {size[1]}x{size[0]} pixels")


def _pixel(point: ElementTree.Element) -> tuple[int, int]:
    return int(point.findtext("X", "")), int(point.findtext("Y", ""))
