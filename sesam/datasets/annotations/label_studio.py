"""Label Studio's JSON: brush, polygon, keypoint and rectangle."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from sesam.artifacts.atomic_io import atomic_path
from sesam.datasets.annotation_shapes import Drawing, Kind, Shape, box_corners
from sesam.datasets.annotations.common import AnnotationFile, Entry, ImageRegions, Number, Pixels, Point
from sesam.geometry.rle import mask_to_counts

NAME, SUFFIX = "Label Studio's JSON", ".json"


class _Value(Entry):
    points: list[Point] | None = None
    x: Number | None = None
    y: Number | None = None
    width: Number | None = None
    height: Number | None = None
    rotation: Number = 0.0
    format: Literal["rle"] | None = None
    rle: list[Annotated[int, Field(ge=0, le=255)]] | None = None
    brushlabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    keypointlabels: list[str] | None = None
    rectanglelabels: list[str] | None = None


class _Result(Entry):
    type: str
    value: dict[str, Any] = Field(default_factory=dict)
    original_width: Pixels | None = None
    original_height: Pixels | None = None


class _Annotation(Entry):
    result: list[_Result]
    was_cancelled: bool = False


class _Task(Entry):
    data: dict[str, Any]
    annotations: list[_Annotation]


READ = ("brushlabels", "polygonlabels", "keypointlabels", "rectanglelabels")


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """The last annotation of each task that was not cancelled; ValidationError or ValueError if it is none."""
    if not isinstance(file.document, list):
        return None
    drawings = []
    for task in TypeAdapter(list[_Task]).validate_python(file.document):
        fields = [task.data.get(key) for key in ("image", "img", "url")] + list(task.data.values())
        name = next((text for text in fields if isinstance(text, str)), None)
        done = [annotation for annotation in task.annotations if not annotation.was_cancelled]
        if done and name is not None and (drawing := _drawing(file.path, name, done[-1])):
            drawings.append((name, drawing))
    return drawings


def _drawing(path: Path, name: str, annotation: _Annotation) -> Drawing | None:
    """What an annotation draws in the image `name`; None if nothing, because then the image's size is unknown."""
    shapes, unread, sizes = [], set(), set()
    for result in annotation.result:
        if result.type not in READ:
            unread |= {result.type} if result.type.endswith("labels") else set()
            continue
        if result.original_width is None or result.original_height is None:
            raise ValueError(f"{result.type} without original_width and original_height")
        size = result.original_height, result.original_width
        sizes.add(size)
        shapes += _shapes(result.type, _Value.model_validate(result.value), size)
    if len(sizes) > 1:
        raise ValueError(f"two sizes of the image {name}")
    return Drawing(path, sizes.pop(), tuple(shapes), tuple(sorted(unread))) if sizes else None


def _shapes(result_type: str, value: _Value, size: tuple[int, int]) -> list[Shape]:
    scale = np.array(size[::-1]) / 100  # its numbers are percent
    names = getattr(value, result_type) or []
    if result_type == "brushlabels" and value.rle is not None:
        pixels = partial(decode_brush, bytes(value.rle), size)
        return [Shape(name, "mask", pixels=pixels) for name in names]
    kind: Kind = "point" if result_type == "keypointlabels" else "polygon"
    if result_type == "polygonlabels" and value.points is not None:
        points = np.reshape(value.points, (-1, 2)) * scale
    elif result_type == "keypointlabels" and value.x is not None and value.y is not None:
        points = np.array([[value.x, value.y]]) * scale
    elif result_type == "rectanglelabels" and None not in (box := (value.x, value.y, value.width, value.height)):
        left, top, width, height = np.array(box, float) * [*scale, *scale]
        points = box_corners(left, top, left + width, top + height, value.rotation, about_corner=True)
    else:
        raise ValueError(f"{result_type} without its numbers")
    return [Shape(name, kind, points) for name in names]


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
    values = np.zeros(total, np.uint32)
    done = 0
    while done < total:
        repeated, length = read_bits(1), read_bits(lengths[read_bits(2)]) + 1
        if done + length > total:
            raise ValueError("a brush whose runs do not fit its image")
        values[done : done + length] = read_bits(word) if repeated else [read_bits(word) for _ in range(length)]
        done += length
    return values.reshape(*size, 4)[..., 3] > 0


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
