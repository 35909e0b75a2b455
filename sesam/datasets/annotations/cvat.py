"""CVAT for images 1.1, its XML."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import atomic_path, read_bytes
from sesam.datasets.annotation_shapes import Drawing, Kind, Shape, box_corners, ellipse
from sesam.datasets.annotations.common import (
    AnnotationFile,
    ImageRegions,
    located,
    parse_number,
    parse_whole,
    runs_to_mask,
    slices,
)
from sesam.geometry.rle import mask_to_counts

NAME, SUFFIX = "CVAT for images 1.1", ".xml"
KINDS: dict[str, Kind] = {"polygon": "polygon", "polyline": "line", "points": "point"}
READ = (*KINDS, "box", "ellipse", "mask", "tag")


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """The shapes of each <image>, by z_order; ValueError, KeyError or TypeError if it is not CVAT's."""
    root: ElementTree.Element | None = file.document
    if root is None and b"<annotations" in read_bytes(file.path)[:1000]:
        raise ValueError("it ends too early, or is damaged")
    if root is None or root.tag != "annotations":
        return None
    if root.find("track") is not None:
        raise ValueError("a video's tracks; export the frames as 'CVAT for images 1.1'")
    drawings = []
    for image in root.iter("image"):
        size = parse_whole(image.attrib["height"]), parse_whole(image.attrib["width"])
        if not all(1 <= side <= 1 << 16 for side in size):
            raise ValueError(f"an image of {size[1]}x{size[0]} pixels")
        subset = image.get("subset", "default")  # of a project; two of its images may have one name
        name = image.attrib["name"] if subset == "default" else f"{subset}/{image.attrib['name']}"
        shapes = list[tuple[int, Shape]]()
        for number, element in enumerate(image, 1):
            with located(where := f"{name}, shape {number}"):
                if (shape := _shape(element)) is not None:
                    shapes.append((parse_whole(element.get("z_order", "0")), shape._replace(where=where)))
        on_top_last = tuple(shape for _, shape in sorted(shapes, key=itemgetter(0)))
        unread = tuple(sorted({element.tag for element in image} - set(READ)))
        drawings.append((name, Drawing(file.path, size, on_top_last, unread)))
    return drawings


def _shape(element: ElementTree.Element) -> Shape | None:
    attributes = element.attrib
    if element.tag in KINDS:
        points = [tuple(map(parse_number, pair.split(","))) for pair in attributes["points"].split(";")]
        if any(len(point) != 2 for point in points):
            raise ValueError(f"a {element.tag} whose points are not pairs x,y")
        return Shape(attributes["label"], KINDS[element.tag], np.array(points, float).reshape(-1, 2))
    if element.tag == "box":
        left, top, right, bottom = (parse_number(attributes[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        corners = box_corners(left, top, right, bottom, parse_number(attributes.get("rotation", "0")))
        return Shape(attributes["label"], "box", corners)
    if element.tag == "ellipse":
        x, y, rx, ry = (parse_number(attributes[key]) for key in ("cx", "cy", "rx", "ry"))
        return ellipse(attributes["label"], x, y, rx, ry, parse_number(attributes.get("rotation", "0")))
    if element.tag == "mask":
        counts = [parse_whole(number) for number in attributes["rle"].split(",")]
        window = [parse_whole(attributes[side]) for side in ("left", "top", "width", "height")]
        return Shape(attributes["label"], "mask", pixels=partial(_mask, counts, window))
    return None


def _mask(counts: list[int], window: list[int], size: tuple[int, int]) -> np.ndarray:
    """Run lengths of a window of the image, row by row, the first of no mask."""
    left, top, width, height = window
    mask = np.zeros(size, bool)
    inside = slices(left, top, width, height, size)  # checked before anything of the window's size is made
    mask[inside] = runs_to_mask(counts, height, width)
    return mask


def write(images: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """out/annotations.xml. CVAT assigns it to a task's images by their file names."""
    with atomic_path(out / "annotations.xml") as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        for number, image in enumerate(images):
            size = {"width": str(image.record.width), "height": str(image.record.height)}
            element = ElementTree.Element("image", {"id": str(number), "name": image.name, **size})
            for class_name, region, attributes in image.regions:
                height, width = region.mask.shape
                window = {"left": region.left, "top": region.top, "width": width, "height": height}
                about = {"label": class_name, "source": "semi-auto", "occluded": "0", "z_order": "0"}
                about |= {side: str(pixels) for side, pixels in window.items()}
                about["rle"] = ", ".join(map(str, mask_to_counts(region.mask.T)))
                mask = ElementTree.SubElement(element, "mask", about)
                for name, value in attributes.items():
                    ElementTree.SubElement(mask, "attribute", name=name).text = str(value)
            ElementTree.indent(element)
            file.write(ElementTree.tostring(element, "unicode") + "\n")
        file.write("</annotations>\n")
