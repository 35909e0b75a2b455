"""ScribbleSup's XML (Lin et al. 2016), a file per image: each `polygon`, an open line of points, is a stroke."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from sesam.artifacts.atomic_io import read_bytes
from sesam.datasets.annotation_shapes import Drawing, Shape
from sesam.datasets.annotations.common import Annotation, AnnotationFile, Drawn, LabelSpec, parse_whole
from sesam.datasets.data_issues import DataIssue, IssueKind
from sesam.errors import SesamError

NAME, SUFFIX = "ScribbleSup's XML", ".xml"
# VOC's names of the tags that differ
VOC_NAMES = dict(plane="aeroplane", bike="bicycle", table="diningtable", plant="pottedplant", monitor="tvmonitor")

EMPTY = {"folder", "filename", "path", "source", "owner", "size", "segmented", "polygon"}  # tags without a stroke


class Scribbles(Annotation):
    """The strokes of one image. Some of their points are outside it; what is drawn there is lost."""

    def draw(self, spec: LabelSpec) -> Drawn:
        try:
            root = ElementTree.fromstring(read_bytes(self.path))
            size = (parse_whole(root.findtext("size/height", "")), parse_whole(root.findtext("size/width", "")))
            strokes = tuple(_stroke(element) for element in root if element.find("point") is not None)
        except (SesamError, ElementTree.ParseError, TypeError, ValueError, LookupError, OverflowError) as problem:
            raise DataIssue(IssueKind.UNREADABLE, f"{self.path} cannot be read as {NAME} ({problem})") from None
        if not strokes and {element.tag for element in root} - EMPTY:
            text = f"{self.path} has no stroke of {NAME}; it is not its XML. Export polygons, masks or strokes"
            raise DataIssue(IssueKind.UNREADABLE, text)
        return Drawing(self.path, size, strokes).draw(spec)


def read(file: AnnotationFile) -> list[tuple[str, Scribbles]] | None:
    """The image that the file is named by. Also of invalid XML: it is reported with the issues of other images."""
    is_other = file.document is not None and file.document.tag != "annotation"
    return None if is_other else [(file.name, Scribbles(file.path))]


def _stroke(element: ElementTree.Element) -> Shape:
    points = [[parse_whole(point.findtext(axis, "")) for axis in "XY"] for point in element.findall("point")]
    tag = element.findtext("tag", "").strip()
    return Shape(VOC_NAMES.get(tag, tag), "line", np.array(points + points[-1:], float))  # one point is a line too
