"""What the formats of annotations share: a file, the annotation of an image, regions to write, ids, checked numbers."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sesam.artifacts.atomic_io import parse_json, read_bytes
from sesam.artifacts.drawn_prompts import NO_PROMPTS, DrawnPrompts
from sesam.artifacts.manifest import ImageRecord
from sesam.datasets.data_issues import DataIssue, IssueKind
from sesam.datasets.label_maps import NO_COLORS, Colors, LabelMap
from sesam.errors import SesamError, describe_validation_error
from sesam.geometry.regions import Region


def _as_int(value: Any) -> Any:
    """640.0 as 640, for some tools write whole numbers so; everything else as it is."""
    return int(value) if type(value) is float and value.is_integer() else value


AsInt = BeforeValidator(_as_int)
Pixels = Annotated[int, Field(strict=True, ge=1, le=1 << 16), AsInt]
FAULTS = (
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
)  # of a file that is not what its reader expects
MAX_NUMBER = 1e7
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MAX_NUMBER, le=MAX_NUMBER)]
Point = tuple[Number, Number]  # x, y


class Entry(BaseModel):
    """A mapping whose other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True)
class AnnotationFile:
    """A file that may hold annotations. name: what its path calls an image, with folders if ids have them."""

    path: Path
    name: str

    @cached_property
    def document(self) -> Any:
        """The value of JSON, or the root of XML, None if it is not XML; SesamError if it is not JSON."""
        content = read_bytes(self.path)
        try:
            return _parse_json(content) if file_kind(self.path) == ".json" else ElementTree.fromstring(content)
        except (ElementTree.ParseError, LookupError):  # LookupError: an unknown encoding
            return None
        except (ValueError, RecursionError) as problem:
            raise SesamError(f"{self.path} cannot be read ({problem}). Correct it, or export it again.") from None


def _parse_json(content: bytes) -> Any:
    """The value of JSON, or the list of those in its lines (JSONL)."""
    try:
        return parse_json(content)
    except JSONDecodeError as problem:
        if problem.msg != "Extra data":
            raise
    values = []
    for number, line in enumerate(content.splitlines(), 1):
        with located(f"line {number}"):
            values += [parse_json(line)] if line.strip() else []
    return values


def file_kind(path: Path) -> str:
    """The suffix in lower case, .json of .geojson and .jsonl."""
    suffix = path.suffix.lower()
    return ".json" if suffix in (".geojson", ".jsonl") else suffix


def describe_fault(problem: Exception) -> str:
    """What is wrong, of an error of FAULTS."""
    if isinstance(problem, ValidationError):
        return describe_validation_error(problem)[0].removeprefix("(whole file): ")
    return f"it lacks {problem}" if isinstance(problem, KeyError) else str(problem)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Faults become ValueErrors that begin with where in the file they are, as "annotation 7"."""
    try:
        yield
    except FAULTS as problem:
        raise ValueError(f"{where}: {describe_fault(problem)}") from None


def parse_number(text: str) -> float:
    """A number in a text; ValueError unless it is finite and as small as a coordinate."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if "_" in text or not text.isascii() or not abs(number) <= MAX_NUMBER:
        raise ValueError(f"{text:.20} is not a coordinate")
    return number


def parse_whole(text: str) -> int:
    """A whole number in a text; ValueError if it is none."""
    if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text):
        raise ValueError(f"{text:.20} is not a whole number")
    return int(text)


class LabelSpec(NamedTuple):
    """The label to make of an annotation. size: (H, W). thickness, radius: of lines and points, in pixels."""

    size: tuple[int, int]
    classes: Sequence[str]
    label_map: LabelMap
    thickness: int
    radius: int


@dataclass(frozen=True)
class Drawn:
    """labels: (H, W) uint8, 255 = unlabeled. prompts: what labels no pixel, but prompts SAM.

    unknown: what is not a class. left_out: what leaves no pixel, by kind.
    """

    labels: np.ndarray
    unknown: Sequence[str | int]
    shapes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    colors: Colors = NO_COLORS
    prompts: DrawnPrompts = NO_PROMPTS


@dataclass(frozen=True)
class Annotation:
    """What annotators made of one image, in a file."""

    path: Path

    @property
    def only_prompts(self) -> bool:
        """Whether it labels no pixel, so that another annotation of the image may."""
        return False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was drawn, also nothing that is not read."""
        return False

    @property
    def own_name(self) -> str | None:
        """The name of a file of one image, which may be the image's where the name inside is not."""
        return None

    def draw(self, spec: LabelSpec) -> Drawn:
        """The annotation as labels; DataIssue: unreadable, or of another size."""
        raise NotImplementedError

    def check_size(self, size: tuple[int, ...], spec: LabelSpec) -> None:
        """DataIssue if size (H, W) is not the image's."""
        if tuple(size) != tuple(spec.size):
            text = f"{self.path} is {size[1]}x{size[0]}, its image {spec.size[1]}x{spec.size[0]} pixels"
            raise DataIssue(IssueKind.SIZES, text)


class LabeledRegion(NamedTuple):
    """A connected region of a class, to be written. attributes: `source` of most of its pixels, and `confidence`."""

    class_name: str
    region: Region
    attributes: dict[str, str | float]


class ImageRegions(NamedTuple):
    """An image with its regions. name: what the tool calls it."""

    record: ImageRecord
    name: str
    regions: list[LabeledRegion]

    @property
    def shape(self) -> tuple[int, int]:
        return self.record.height, self.record.width


def runs_to_mask(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """The pixels (height, width) bool, row by row, of run lengths from no mask on; ValueError if they do not fit."""
    # Python's sum: NumPy's would wrap around to what fits
    if not counts or min(counts) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths that do not fit {width}x{height} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)


def slices(left: int, top: int, width: int, height: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """The slices of a window in an image of `size` (H, W); ValueError if it reaches out of the image."""
    if min(left, top, width, height) < 0 or left + width > size[1] or top + height > size[0]:
        ends = f"from {left}, {top} to {left + width}, {top + height}"
        raise ValueError(f"a mask that reaches out of its image of {size[1]}x{size[0]} pixels: {ends}")
    return slice(top, top + height), slice(left, left + width)
