"""Label Studio's JSON: brush, polygon, keypoint, rectangle and ellipse."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AliasChoices, Field, TypeAdapter

from sesam.artifacts.atomic_io import atomic_path
from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners, ellipse
from sesam.datasets.annotations.common import AnnotationFile, Entry, ImageRegions, Number, Pixels, Point, located
from sesam.datasets.layouts import IMAGE_SUFFIXES
from sesam.errors import SesamError
from sesam.geometry.rle import mask_to_counts

NAME, SUFFIX = "Label Studio's JSON", ".json"


class _Value(Entry):
    points: list[Point] | None = None
    x: Number | None = None
    y: Number | None = None
    width: Number | None = None
    height: Number | None = None
    radius_x: Number | None = Field(None, alias="radiusX")
    radius_y: Number | None = Field(None, alias="radiusY")
    rotation: Number = 0.0
    format: Literal["rle"] | None = None
    rle: list[Annotated[int, Field(strict=True, ge=0, le=255)]] | None = None


class _Result(Entry):
    type: str
    id: str | int | None = None
    value: dict[str, Any] = Field(default_factory=dict)
    to_name: str = ""
    item_index: Annotated[int, Field(ge=0)] | None = None
    is_positive: bool = True
    image_rotation: Number = 0.0
    original_width: Pixels | None = None
    original_height: Pixels | None = None


class _Annotation(Entry):
    result: list[Any]
    was_cancelled: bool = False
    ground_truth: bool = False


class _Task(Entry):
    data: dict[str, Any]
    annotations: list[_Annotation] = Field([], validation_alias=AliasChoices("annotations", "completions"))


ANNOTATED = {"annotations", "completions", "predictions"}  # keys of a task; Label Studio 0 had completions
NAMES = TypeAdapter(list[str])
TOOLS = ("brush", "polygon", "keypoint", "rectangle", "ellipse")  # with labels of their own, or beside <Labels>
UNREAD = ("bitmask", "vector", "videorectangle")  # regions too; with labels of their own they end so
USUAL_KEYS = ("image", "img", "url")


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """Of each task the annotation marked as ground truth, else the last one that was not cancelled.

    ValidationError or ValueError if it is not Label Studio's, SesamError if it is its JSON-MIN.
    """
    if (tasks := _tasks(file.document)) is None:
        return None
    keys = [task.keys() for task in tasks if isinstance(task, dict)]
    if keys and len(keys) == len(tasks) and not any({"data", "result"} & x for x in keys):
        found = f"{file.path} is a list of mappings with the keys {', '.join(sorted(keys[0])[:8])}"
        raise SesamError(f"{found}; expected Label Studio's tasks. Export the project as JSON, not as JSON-MIN.")
    drawings = []
    for number, entry in enumerate(tasks, 1):
        with located(_where("task", entry.get("id") if isinstance(entry, dict) else None, number)):
            task = _Task.model_validate(entry)
            if not ANNOTATED & entry.keys():
                raise ValueError("it has no annotations")
            done = [annotation for annotation in task.annotations if not annotation.was_cancelled]
            if done := [annotation for annotation in done if annotation.ground_truth] or done:
                drawings += _drawings(file.path, task.data, done[-1].result)
    if not drawings and any(task.get("predictions") for task in tasks):
        text = "has predictions, and no submitted annotation. Submit them in Label Studio, and export JSON again."
        raise SesamError(f"{file.path} {text}")
    return drawings


def _tasks(document: Any) -> list[Any] | None:
    """The tasks of a project, of one task, or of an annotation as it is synced to a storage; None if it has none."""
    if not isinstance(document, dict):
        return document if isinstance(document, list) else None
    if "result" in document and isinstance(document.get("task"), dict):
        return [document["task"] | {"annotations": [document]}]
    return [document] if "data" in document and ANNOTATED & document.keys() else None


def _where(kind: str, known: Any, number: int) -> str:
    """A task or region by its id, else by its number in the list."""
    return f"{kind} {known!s:.60}" if isinstance(known, int | str) and known != "" else f"{kind} number {number}"


def _drawings(path: Path, data: dict[str, Any], entries: list[Any]) -> list[tuple[str, Drawing]]:
    """What is drawn in each picture of a task, by the picture's name."""
    pictures = {key: value for key, value in data.items() if _is_picture(value)}
    results = []
    for number, entry in enumerate(entries, 1):
        with located(f"region number {number}"):
            results.append(_Result.model_validate(entry))
    # others are about the whole task
    results = [x for x in results if x.type.endswith("labels") or x.type in (*TOOLS, *UNREAD)]
    if not results:  # submitted without a region
        names = [value for value in pictures.values() if isinstance(value, str)]
        return [(name, Drawing(path, None, ())) for name in names[:1] if len(pictures) == 1]
    of_picture: dict[str, list[_Result]] = {}
    targets = {result.to_name for result in results}
    for result in results:
        name = _picture(result, targets, pictures, data)
        of_picture.setdefault(name, []).append(result)
    return [(name, _drawing(path, name, found)) for name, found in of_picture.items()]


def _is_picture(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_picture, value))
    return isinstance(value, str) and value.split("?d=")[-1].split("?")[0].lower().endswith(IMAGE_SUFFIXES)


def _picture(result: _Result, targets: set[str], pictures: dict[str, Any], data: dict[str, Any]) -> str:
    """The name of the picture that a region is drawn in; ValueError if the task shows several, and it is not known."""
    left = [key for key in pictures if key not in targets]  # a tag is often called like the data that it shows
    if result.to_name in pictures:
        value = pictures[result.to_name]
    elif len(left) == 1:
        value = pictures[left[0]]
    elif left:
        raise ValueError(
            f"a task shows {', '.join(left)}, and {result.to_name!r} may be any: name the tag like its data"
        )
    else:
        value = next((data[key] for key in (*USUAL_KEYS, *data) if isinstance(data.get(key), str)), None)
    if isinstance(value, list):
        value = value[result.item_index or 0] if (result.item_index or 0) < len(value) else None
    if value is None:
        raise ValueError(f"a region of {result.to_name!r}, which its task does not show")
    return str(value)


def _drawing(path: Path, name: str, results: list[_Result]) -> Drawing:
    shapes, unread, sizes, skipped = [], set(), set(), Counter[str]()
    labels = {x.id: NAMES.validate_python(x.value.get("labels", [])) for x in results if x.type == "labels"}
    for number, result in enumerate(results, 1):
        tool = result.type.removesuffix("labels")
        if result.original_width is not None and result.original_height is not None:
            sizes.add((result.original_height, result.original_width))
        if tool not in TOOLS:
            unread |= {result.type} if tool else set()
            continue
        with located(where := _where("region", result.id, number)):
            own = result.value.get(result.type, []) if tool != result.type else labels.get(result.id, [])
            shape = _shape(result, tool, NAMES.validate_python(own))
        is_positive = result.is_positive and result.value.get("is_positive", True)
        if shape is None:
            skipped["regions without a label"] += 1
        elif is_positive or tool == "keypoint":
            kind = shape.kind if is_positive else "background point"
            shapes.append(shape._replace(kind=kind, region=result.id, where=where))
        else:
            skipped[f"negative {tool}s"] += 1
    if len(sizes) > 1:
        raise ValueError(f"two sizes of the image {name}")
    known = sizes.pop() if sizes else None
    return Drawing(path, known, tuple(shapes), tuple(sorted(unread)), skipped=skipped)


def _shape(result: _Result, tool: str, names: list[str]) -> Shape | None:
    """None if no name was chosen; ValueError for several, and where a number is missing."""
    if result.original_width is None or result.original_height is None:
        raise ValueError(f"{result.type} without original_width and original_height")
    if result.image_rotation % 360:
        raise ValueError(f"its image was turned by {result.image_rotation:g} degrees. Turn it back")
    if len(set(names)) > 1:
        raise ValueError(f"a {tool} with the labels {', '.join(names)}. Keep one of them")
    if not names:
        return None
    name, value = names[0], _Value.model_validate(result.value)
    scale = np.array([result.original_width, result.original_height]) / 100  # its numbers are percent
    if tool == "brush" and value.rle is not None:
        return Shape(name, "mask", pixels=partial(decode_brush, bytes(value.rle)))
    if tool == "polygon" and value.points is not None:
        return Shape(name, "polygon", np.reshape(value.points, (-1, 2)) * scale)
    if value.x is not None and value.y is not None:
        x, y = value.x * scale[0], value.y * scale[1]
        if tool == "keypoint":
            return Shape(name, "point", np.array([[x, y]]))
        if tool == "rectangle" and value.width is not None and value.height is not None:
            right, bottom = x + value.width * scale[0], y + value.height * scale[1]
            return Shape(name, "box", box_corners(x, y, right, bottom, value.rotation, about_corner=True))
        if tool == "ellipse" and value.radius_x is not None and value.radius_y is not None:
            radii = value.radius_x * scale[0], value.radius_y * scale[1]
            return ellipse(name, x, y, *radii, value.rotation)
    raise ValueError(f"{tool} without its numbers")


def decode_brush(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """A brush's pixels, (H, W) bool: RGBA values packed bit by bit; ValueError if they are not those of the image.

    32 bits: how many values. 5 bits: their size less one. Four times 4 bits: the sizes of lengths less one. Then runs:
    a bit, whether one value is repeated; 2 bits, which size the length has; the length less one; one value, or so many.
    """
    bits = "".join(f"{byte:08b}" for byte in content)
    position = 0

    def read_bits(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise ValueError("a brush that ends too early")
        return int(bits[position - count : position], 2)

    total, word = read_bits(32), read_bits(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"a brush of {total // 4} pixels in an image of {size[1]}x{size[0]}")
    lengths = [read_bits(4) + 1 for _ in range(4)]
    values = np.zeros(total, bool)  # whether above 0
    done = 0
    while done < total:
        repeated, length = read_bits(1), read_bits(lengths[read_bits(2)]) + 1
        if done + length > total:
            raise ValueError("a brush whose runs do not fit its image")
        values[done : done + length] = read_bits(word) > 0 if repeated else [read_bits(word) > 0 for _ in range(length)]
        done += length
    return values.reshape(*size, 4)[..., 3]


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask (H, W) bool in the bytes that `decode_brush` reads."""
    bits = [f"{4 * mask.size:032b}", f"{7:05b}", f"{15:04b}" * 4]
    for k, length in enumerate(mask_to_counts(mask.T).tolist()):
        value = f"{255 * (k % 2):08b}"
        for start in range(0, 4 * length, 1 << 16):
            bits.append(f"100{min(4 * length - start, 1 << 16) - 1:016b}{value}")
    return np.packbits([bit == "1" for bit in "".join(bits)]).tolist()


def write(images: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """out/tasks.json, each with an annotation of brushes, and out/labels.xml, the project's labeling interface."""
    with atomic_path(out / "tasks.json") as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write("[")
        for k, image in enumerate(images):
            annotation = {"result": _to_results(image), "was_cancelled": False}
            task = {"data": {"image": image.name}, "annotations": [annotation]}
            file.write(",\n" * (k > 0) + json.dumps(task))
        file.write("]")
    labels = ElementTree.Element("BrushLabels", name="labels", toName="image")
    view = ElementTree.Element("View")
    view.extend([ElementTree.Element("Image", name="image", value="$image"), labels])
    for name in classes:
        ElementTree.SubElement(labels, "Label", value=name)
    with atomic_path(out / "labels.xml") as unfinished:
        ElementTree.ElementTree(view).write(unfinished, encoding="utf-8")


def _to_results(image: ImageRegions) -> list[dict[str, Any]]:
    sides = {"original_width": image.record.width, "original_height": image.record.height, "image_rotation": 0}
    results = []
    for number, (class_name, region, attributes) in enumerate(image.regions):
        result = {"id": f"{number}", "type": "brushlabels", "from_name": "labels", "to_name": "image", **sides}
        if "confidence" in attributes:
            result["score"] = attributes["confidence"]
        brush = encode_brush(region.full_mask(image.shape))
        value = {"format": "rle", "rle": brush, "brushlabels": [class_name]}
        results.append(result | {"meta": {"text": [attributes["source"]]}, "value": value})
    return results
