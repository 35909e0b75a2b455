"""What's the Point (Bearman et al. 2016): JSON with the clicks {x, y, cls} of each image."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sesam.datasets.annotation_shapes import Drawing, Shape
from sesam.datasets.annotations.common import (
    FAULTS,
    MAX_NUMBER,
    Annotation,
    AnnotationFile,
    Drawn,
    LabelSpec,
    describe_fault,
    located,
)
from sesam.datasets.data_issues import DataIssue, IssueKind

NAME, SUFFIX = "What's the Point", ".json"


@dataclass(frozen=True)
class Clicks(Annotation):
    """The clicks of one image, each a disc of its class."""

    clicks: Any

    def draw(self, spec: LabelSpec) -> Drawn:
        try:
            shapes = tuple(_shape(number, click) for number, click in enumerate(self.clicks, 1))
        except FAULTS as problem:
            text = f"clicks in {self.path} that are not {{x, y, cls}} of numbers ({describe_fault(problem)})"
            raise DataIssue(IssueKind.UNREADABLE, text) from None
        return Drawing(self.path, spec.size, shapes).draw(spec)


def _shape(number: int, click: Any) -> Shape:
    with located(f"click {number}"):
        if not isinstance(click, dict):
            raise ValueError(f"{click!r:.60}")
        class_id, *point = (_whole(click[key]) for key in ("cls", "x", "y"))
        return Shape(class_id, "point", np.array([point], float))


def _whole(value: Any) -> int:
    if type(value) is not int or abs(value) > MAX_NUMBER:
        raise ValueError(f"{value!r:.60} is not a whole number")
    return value


def read(file: AnnotationFile) -> list[tuple[str, Clicks]] | None:
    """The clicks of each image, by its id."""
    document = file.document
    if not isinstance(document, dict) or not all(isinstance(clicks, list) for clicks in [*document.values()] or [None]):
        return None
    return [(k, Clicks(file.path, clicks)) for k, clicks in document.items()]
