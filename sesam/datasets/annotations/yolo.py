"""YOLO's text, a file per image: each line a box or a polygon of a numbered class, in shares of the image's sides."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import read_bytes
from sesam.datasets.annotation_shapes import Drawing, Shape, box_corners
from sesam.datasets.annotations.common import AnnotationFile, Drawn, LabelSpec, located, parse_number
from sesam.errors import SesamError
from sesam.yaml_io import read_yaml

NAME, SUFFIX = "YOLO's text", ".txt"
CLASS_FILES = ("data.yaml", "classes.txt", "obj.names")  # YOLO's, labelImg's, CVAT's
ABOVE = 2  # folders above weak_labels.path in which they may be, as above train/labels
TOLERANCE = 0.01  # tools round, and write coordinates a little outside the image


@dataclass(frozen=True)
class RelativeDrawing(Drawing):
    """A drawing with coordinates from 0 to 1."""

    def draw(self, spec: LabelSpec) -> Drawn:
        shapes = [shape._replace(points=shape.points * spec.size[::-1]) for shape in self.shapes]
        return Drawing(self.path, None, tuple(shapes), skipped=self.skipped).draw(spec)


def read(file: AnnotationFile) -> list[tuple[str, Drawing]]:
    """The shapes of its image; none if it is another text or no file names the classes. ValueError for a wrong line."""
    rows = read_rows(file.path)
    named_in = find_class_names(file.path, file.name.count("/") + 1)
    if rows is None or named_in is None or file.path.name in CLASS_FILES:
        return []
    names = read_class_names(named_in, named_in.stat().st_mtime_ns)
    shapes = []
    for number, row in enumerate(rows, 1):
        with located(f"line {number}"):
            try:
                shapes += [_shape(row, names)] if row else []
            except KeyError:
                raise ValueError(f"class {row[0]:.20} is not in {named_in}") from None
    # labels/val/7.txt, val/labels/7.txt and obj_val_data/7.txt are of images/val/7.png or val/images/7.png
    name = re.sub(r"/obj_(\w+)_data/", r"/\1/", f"/{file.name}".replace("/labels/", "/"))[1:]
    quads = sum(len(row) == 9 for row in rows)
    doubtful = {"rows of nine columns, read as polygons (oriented boxes look the same)": quads * (quads == len(shapes))}
    return [(name, RelativeDrawing(file.path, None, tuple(shapes), skipped=doubtful))]


def find_class_names(path: Path, depth: int) -> Path | None:
    """The file that names the classes of a text file, which is in so many folders of the source."""
    candidates = [folder / name for folder in path.parents[: depth + ABOVE] for name in CLASS_FILES]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def lacks_class_names(path: Path, source: Path) -> bool:
    """Whether a text file below `source` has shapes, and no file names their classes."""
    depth = len(path.relative_to(source).parts)
    return path.suffix.lower() == SUFFIX and find_class_names(path, depth) is None and any(read_rows(path) or [])


def read_rows(path: Path) -> list[list[str]] | None:
    """The columns of each line; None if no line is a box or a polygon, for then it is another text."""
    lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
    return [line.split() for line in lines] if not any(map(str.split, lines)) or any(map(_is_row, lines)) else None


def _is_row(line: str) -> bool:
    """Whether it has four numbers or more after a class, also with what `_shape` refuses: commas, a class's name."""
    _, *texts = re.split(r"[\s,;]+", line.strip())
    try:
        return len([float(text) for text in texts]) >= 4
    except ValueError:
        return False


@lru_cache(maxsize=16)
def read_class_names(path: Path, changed: int) -> Mapping[float, str]:
    """The class names in a file by number; SesamError if it has none. changed: when it was; what is newer is read."""
    if path.suffix != ".yaml":
        lines = read_bytes(path).decode("utf-8-sig", errors="replace").splitlines()
        return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    document = read_yaml(path)
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict):
        names = {int(k) if isinstance(k, str) and k.isdecimal() else k: name for k, name in names.items()}
    if not isinstance(names, dict) or not all(type(k) is int and isinstance(x, str) for k, x in names.items()):
        text = "has no `names`, which is a list of class names or a mapping of numbers to them"
        raise SesamError(f"{path} {text}. Correct it; put yes, no and numbers in quotes.")
    if "kpt_shape" in document:
        raise SesamError(f"{path} is of poses (kpt_shape), which are not read. Export boxes or polygons.")
    return names


def _shape(row: list[str], names: Mapping[float, str]) -> Shape:
    if any(mark in text for text in row for mark in ",;"):
        raise ValueError("commas or semicolons; expected blanks between numbers, and points in them")
    if re.match(r"[^\W\d]", row[0]):
        raise ValueError(f"class {row[0]:.60}; expected its number")
    number, *values = map(parse_number, row)
    if len(values) < 4 or len(values) % 2:
        raise ValueError(f"{len(row)} columns, which are not class and x y pairs")
    if min(values) < -TOLERANCE or max(values) > 1 + TOLERANCE:
        raise ValueError("coordinates that are not from 0 to 1")
    if len(values) > 4:
        return Shape(names[number], "polygon", np.reshape(values, (-1, 2)))
    x, y, width, height = values
    corners = box_corners(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return Shape(names[number], "box", corners)
