"""ScribbleSup's XML (Lin et al. 2016), a file per image: each `polygon`, an open line of points, is a stroke."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from sesam.datasets.annotation_shapes import clip_to_bounds
from sesam.datasets.annotations.common import Annotation, AnnotationFile, LabelSpec
from sesam.datasets.data_issues import UNREADABLE, DataIssue
from sesam.geometry.strokes import draw_stroke
from sesam.labels import IGNORE_INDEX

NAME, SUFFIX = "ScribbleSup's XML", ".xml"
# VOC's names of the tags that differ
VOC_NAMES = dict(plane="aeroplane", bike="bicycle", table="diningtable", plant="pottedplant", monitor="tvmonitor")


class Scribbles(Annotation):
    """The strokes of one image. Some of their points are outside it; what is drawn there is lost."""

    def draw(self, spec: LabelSpec) -> tuple[np.ndarray, list[str]]:
        try:
            root = ElementTree.parse(self.path).getroot()
            size = (int(root.findtext("size/height", "")), int(root.findtext("size/width", "")))
            lines = [(s.findtext("tag", "").strip(), [_pixel(point) for point in s.findall("point")]) for s in root]
        except (OSError, ElementTree.ParseError, TypeError, ValueError, LookupError, OverflowError) as problem:
            raise DataIssue(UNREADABLE, f"{self.path} cannot be read as {NAME} ({problem})") from None
        self.check_size(size, spec)
        labels = np.full(spec.size, IGNORE_INDEX, np.uint8)
        unknown = set()
        for tag, points in lines:
            class_name = VOC_NAMES.get(tag, tag)
            if points and class_name in spec.classes:
                stroke = draw_stroke(spec.size, clip_to_bounds(np.array(points), spec.size), spec.thickness)
                labels[stroke] = spec.classes.index(class_name)
            elif points:
                unknown.add(repr(tag))
        return labels, sorted(unknown)


def matches(file: AnnotationFile) -> bool:
    return True  # of invalid XML too: it is reported with the issues of other images


def read(file: AnnotationFile) -> list[tuple[str, Scribbles]]:
    """The image that the file is named by."""
    return [(file.name, Scribbles(file.path))]


def _pixel(point: ElementTree.Element) -> tuple[int, int]:
    return int(point.findtext("X", "")), int(point.findtext("Y", ""))
