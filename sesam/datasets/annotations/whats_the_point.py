"""What's the Point (Bearman et al. 2016): JSON with the clicks {x, y, cls} of each image."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from sesam.datasets.annotation_shapes import FAR
from sesam.datasets.annotations.common import Annotation, AnnotationFile, LabelSpec
from sesam.datasets.data_issues import UNREADABLE, DataIssue
from sesam.labels import IGNORE_INDEX

NAME, SUFFIX = "What's the Point", ".json"


@dataclass(frozen=True)
class Clicks(Annotation):
    """The clicks of one image, each a disc of its class."""

    clicks: Any

    def draw(self, spec: LabelSpec) -> tuple[np.ndarray, list[str]]:
        try:
            clicks = [tuple(int(click[key]) for key in ("x", "y", "cls")) for click in self.clicks]
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            text = f"clicks in {self.path} that are not {{x, y, cls}} of numbers ({type(problem).__name__}: {problem})"
            raise DataIssue(UNREADABLE, text) from None
        (height, width), classes = spec.size, len(spec.classes)
        labels = np.full(spec.size, IGNORE_INDEX, np.uint8)
        for x, y, k in clicks:
            if 0 <= k < classes and -FAR < x < width + FAR and -FAR < y < height + FAR:
                cv2.circle(labels, (x, y), spec.radius, k, cv2.FILLED)
        return labels, sorted({str(k) for _, _, k in clicks if not 0 <= k < classes})


def matches(file: AnnotationFile) -> bool:
    return isinstance(file.document, dict)


def read(file: AnnotationFile) -> list[tuple[str, Clicks]]:
    """The clicks of each image, by its id."""
    return [(image_id, Clicks(file.path, clicks)) for image_id, clicks in file.document.items()]
