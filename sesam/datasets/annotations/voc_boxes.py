"""Pascal VOC's detection XML, a file per image, with boxes."""

import xml.etree.ElementTree as ElementTree

from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import AnnotationFile, parse_number, parse_whole
from sesam.datasets.annotations.scribblesup import EMPTY
from sesam.errors import SesamError

NAME, SUFFIX = "Pascal VOC's detection XML", ".xml"


def read(file: AnnotationFile) -> list[tuple[str, Drawing]] | None:
    """The boxes of its image, None if it is another XML; ValueError if a number or a name is missing."""
    root: ElementTree.Element | None = file.document
    if root is None or root.tag != "annotation" or root.find("*/point/X") is not None:
        return None
    if root.find("object") is None and (root.find("filename") is None or {element.tag for element in root} - EMPTY):
        return None
    objects = root.findall("object")
    if root.find("object/polygon/pt") is not None and root.find("object/bndbox") is None:
        raise SesamError(f"{file.path} is LabelMe's XML, which is not read. Export CVAT for images, or labelme's JSON.")
    height, width = (
        parse_whole(root.findtext(f"size/{side}") or "0") for side in ("height", "width")
    )  # some tools write 0
    size = (height, width) if height and width else None
    name = f"{root.findtext('folder', '')}/{root.findtext('filename') or file.name}"
    skipped = {"outlines beside their box": sum(element.find("polygon") is not None for element in objects)}
    drawing = Drawing(file.path, size, tuple(map(_box, objects)), own_name=file.name, skipped=skipped)
    return [(name, drawing)]


def _box(element: ElementTree.Element) -> Shape:
    """An object's box, whose sides are numbered pixels from 1, the last included."""
    name = element.findtext("name", "").strip()
    sides = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in sides:
        raise ValueError(f"an object {name!r} without name or bndbox")
    left, top, right, bottom = (parse_number(side or "") for side in sides)
    if left > right or top > bottom:
        raise ValueError(f"{name} with a bndbox that ends before it begins")
    attributes = {x.findtext("name", ""): x.findtext("value", "") for x in element.iterfind("attributes/attribute")}
    rotation = parse_number(attributes.get("rotation") or "0")  # CVAT's, of the box before it is turned
    return Shape(name, "box", box_corners(left - 1, top - 1, right, bottom, rotation))
