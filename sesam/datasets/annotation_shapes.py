"""Annotation tools' shapes as weak labels: discs at points, strokes along lines, insides of polygons, masks' pixels.

Boxes and background points label no pixel: they prompt SAM.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple
from unicodedata import normalize

import cv2
import numpy as np
from pycocotools import mask as coco

from sesam.artifacts.drawn_prompts import NO_PROMPTS, BackgroundPoint, Box, DrawnBox, DrawnPrompts
from sesam.datasets.annotations.common import Annotation, Drawn, LabelSpec
from sesam.datasets.data_issues import DataIssue, IssueKind
from sesam.geometry.strokes import draw_stroke
from sesam.labels import IGNORE_INDEX

MAX_PIXELS_OUTSIDE = 2**14  # pixels outside an image, where outlines are cut
# pixels of outlines: pycocotools walks all of them, and takes 100 bytes for each
PART, MAX_DRAWN = 2**20, 2**26  # at once; of all shapes in an image
Kind = Literal["point", "line", "polygon", "box", "mask", "background point"]


class Shape(NamedTuple):
    """One shape of a class, by its name or id: points, or a mask's pixels."""

    name: str | int
    kind: Kind
    points: np.ndarray = np.empty((0, 2))  # (N, 2) float x, y in pixels; the image's first pixel covers 0 to 1
    pixels: Callable[[tuple[int, int]], np.ndarray] | None = None  # of an image's size, (H, W) bool; or ValueError
    holes: tuple[np.ndarray, ...] = ()  # outlines (N, 2) that are cut out of a polygon
    region: str | int | None = None  # shapes of one region say several things of the same pixels
    where: str = ""  # in its file, as "annotation 7", for messages

    def draw(self, size: tuple[int, int], thickness: int, radius: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """A window of an image of `size` (H, W) that holds it, and its pixels there, bool.

        ValueError if it is a mask of another size.
        """
        whole = slice(0, size[0]), slice(0, size[1])
        if self.pixels is not None:
            mask = self.pixels(size)
            if mask.shape != size:
                raise ValueError(f"a mask of {mask.shape[1]}x{mask.shape[0]} pixels")
            return whole, mask
        if self.kind == "polygon":
            window = _window(self.points, size, margin=1)
            mask = _fill(self.points, size, window)
            for hole in self.holes:
                mask &= ~_fill(hole, size, window)
            return window, mask
        pixels = np.floor(_clip(self.points, size)).astype(np.int32)
        window = rows, columns = _window(pixels, size, margin=max(thickness, radius) + 1)
        pixels -= np.array([columns.start, rows.start], np.int32)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if self.kind == "line" and len(pixels) > 1 and height * width:
            return window, draw_stroke((height, width), pixels, thickness)
        drawn = np.zeros((height, width), np.uint8)
        for point in pixels.tolist() if height * width else ():
            cv2.circle(drawn, point, radius, 1, cv2.FILLED)
        return window, drawn > 0

    def box(self, size: tuple[int, int]) -> Box | None:
        """The upright box around its points, in an image of `size` (H, W); None if that is outside, or it has none."""
        if not len(self.points):
            return None
        edges, points = np.array(size[::-1]), _clip(self.points, size).round(3)  # numbers in percent are not exact
        if not (points.min(0) < points.max(0)).all():
            return None  # without an area, also between pixels
        left, top = np.floor(points.min(0)).clip(0, edges).astype(int).tolist()
        right, bottom = np.ceil(points.max(0)).clip(0, edges).astype(int).tolist()
        return (left, top, right, bottom) if left < right and top < bottom else None


def _window(points: np.ndarray, size: tuple[int, int], margin: int) -> tuple[slice, slice]:
    """The part of an image of `size` (H, W) around points (N, 2) x, y, with a margin in pixels."""
    if not len(points):
        return slice(0, 0), slice(0, 0)
    edges, points = np.array(size[::-1]), _clip(points, size)
    left, top = (np.floor(points.min(0)).astype(int) - margin).clip(0, edges).tolist()
    right, bottom = (np.ceil(points.max(0)).astype(int) + margin).clip(0, edges).tolist()
    return slice(top, bottom), slice(left, right)


def _clip(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.nan_to_num(points).clip(-MAX_PIXELS_OUTSIDE, np.array(size[::-1]) + MAX_PIXELS_OUTSIDE)


def _fill(outline: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]) -> np.ndarray:
    """The pixels inside an outline (N, 2) in an image of `size` (H, W), those of the window, bool."""
    rows, columns = window
    filled = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    if not filled.size or len(outline := clip_outline(outline, size)) < 3:
        return filled
    origin = np.array([columns.start, rows.start])
    fifths = np.floor(5 * outline + 0.5)  # as pycocotools rounds: shifted before, some would be rounded the other way
    outline = np.where(origin > 0, (fifths - 5 * origin) / 5, outline)
    # a long outline in parts with its first point each: what lies in an even number of them is outside, as in the whole
    ends = np.flatnonzero(np.diff(_lengths(outline).cumsum() // PART)) + 1
    for start, end in pairwise([0, *ends.tolist(), len(outline) - 1]):
        part = np.concatenate([outline[: start > 0], outline[start : end + 1]])
        if len(part) >= 3:
            filled ^= coco.decode(coco.frPyObjects([part.ravel().tolist()], *filled.shape))[..., 0] > 0
    return filled


def clip_outline(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The outline (N, 2) of its part that is at most MAX_PIXELS_OUTSIDE pixels outside an image of `size` (H, W)."""
    for axis, side in enumerate(size[::-1]):
        for inwards, edge in ((1, -MAX_PIXELS_OUTSIDE), (-1, side + MAX_PIXELS_OUTSIDE)):
            after, distance = np.roll(outline, -1, axis=0), inwards * (outline[:, axis] - edge)
            if (distance >= 0).all():
                continue
            next_distance = np.roll(distance, -1)
            crosses = (distance >= 0) != (next_distance >= 0)
            share = distance / np.where(crosses, distance - next_distance, 1)
            both = np.stack([outline, outline + share[:, None] * (after - outline)], axis=1)
            outline = both[np.stack([distance >= 0, crosses], axis=1)]
    return outline


def _lengths(points: np.ndarray) -> np.ndarray:
    """How many pixels each piece of a line (N, 2) has."""
    return np.asarray(np.abs(np.diff(points, axis=0)).max(axis=1))


def _fill_ellipse(numbers: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    return _fill(ellipse_outline(*numbers), size, (slice(0, size[0]), slice(0, size[1])))


def _composed(name: str | int) -> str | int:
    """A name with composed letters; a Mac may decompose them."""
    return normalize("NFC", name) if isinstance(name, str) else name


def _class_ids(spec: LabelSpec) -> dict[str | int, int]:
    """The class of each id and name, as the classes, dataset.map and a Mac spell it."""
    class_ids: dict[str | int, int] = {k: k for k in range(len(spec.classes))}
    class_ids.update(zip(spec.classes, range(len(spec.classes)), strict=True))
    class_ids.update(spec.label_map.names.items())
    return class_ids | {_composed(name): k for name, k in class_ids.items()}


@dataclass(frozen=True)
class Drawing(Annotation):
    """What was drawn with a tool in one image. Later shapes cover earlier ones."""

    size: tuple[int, int] | None  # (H, W) as the file has it; None: it has none
    shapes: tuple[Shape, ...]
    unread: tuple[str, ...] = ()  # kinds of shapes in it that are not read
    own_name: str | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)  # what else is left out on purpose, and how many

    @property
    def only_prompts(self) -> bool:
        return bool(self.shapes) and all(shape.kind in ("box", "background point") for shape in self.shapes)

    @property
    def is_empty(self) -> bool:
        return not (self.shapes or self.unread or any(self.skipped.values()))

    def draw(self, spec: LabelSpec) -> Drawn:
        self._check_numbers(spec)
        class_ids = _class_ids(spec)
        shapes = [x if x.name in class_ids else x._replace(name=_composed(x.name)) for x in self.shapes]
        known = [(shape, class_ids[shape.name]) for shape in shapes if shape.name in class_ids]
        classified = {shape.region for shape, class_id in known if class_id != IGNORE_INDEX} - {None}
        canvas = _Canvas(spec, self.skipped)
        for shape, class_id in known:
            if class_id == IGNORE_INDEX and shape.region in classified:
                continue  # an attribute of what another shape gives a class
            try:
                canvas.add(shape, class_id)
            except ValueError as problem:
                where = f" ({shape.where})" if shape.where else ""
                raise DataIssue(IssueKind.UNREADABLE, f"{self.path} has {problem}{where}") from None
        unknown = sorted({shape.name for shape in shapes if shape.name not in class_ids}, key=repr)
        if self.unread and not unknown:
            raise DataIssue(IssueKind.SHAPES, f"{self.path}: {', '.join(self.unread)}")
        return Drawn(canvas.labels, unknown, len(shapes), canvas.count_left_out(), prompts=canvas.prompts)

    def _check_numbers(self, spec: LabelSpec) -> None:
        """DataIssue: another size, coordinates that are not pixels, or longer outlines than can be drawn."""
        if self.size is not None:
            self.check_size(self.size, spec)
        outlines = [shape.points for shape in self.shapes if shape.kind in ("polygon", "box") and len(shape.points)]
        if outlines and max(np.abs(points).max() for points in outlines) <= 1:
            raise DataIssue(IssueKind.UNREADABLE, f"{self.path} has coordinates from 0 to 1; expected pixels")
        length = sum(_lengths(_clip(line, spec.size)).sum() for x in self.shapes for line in (x.points, *x.holes))
        if length > MAX_DRAWN:
            text = f"{self.path} has outlines of {length:.0f} pixels; at most {MAX_DRAWN} are drawn"
            raise DataIssue(IssueKind.UNREADABLE, text)


class _Canvas:
    """Labels (H, W) uint8 and prompts of an image while shapes are added to it. skipped: what was left out before."""

    def __init__(self, spec: LabelSpec, skipped: Mapping[str, int]) -> None:
        self.spec = spec
        self.labels = np.full(spec.size, IGNORE_INDEX, np.uint8)
        self.prompts = NO_PROMPTS
        self._left_out = Counter(skipped)
        self._top = np.zeros(spec.size, np.int32)  # of each pixel, the number of the shape that labels it, from 1
        self._num_drawn = 0

    def add(self, shape: Shape, class_id: int) -> None:
        """Draw a shape over the earlier ones; ValueError if it is a mask of another size."""
        self._left_out["shapes that dataset.map gives no class"] += class_id == IGNORE_INDEX
        add = {"box": self._add_box, "background point": self._add_background}.get(shape.kind, self._draw)
        if not add(shape, class_id):
            self._left_out[f"{'boxe' if shape.kind == 'box' else shape.kind}s without a pixel"] += 1

    def _add_box(self, shape: Shape, class_id: int) -> bool:
        """Whether it has a pixel, as the others."""
        box = shape.box(self.spec.size)
        if box and class_id != IGNORE_INDEX:
            self.prompts += DrawnPrompts(boxes=(DrawnBox(class_id, box),))
        return box is not None

    def _add_background(self, shape: Shape, class_id: int) -> bool:
        (rows, columns), mask = shape.draw(self.spec.size, self.spec.thickness, radius=0)
        points = np.add(np.argwhere(mask), (rows.start, columns.start)).tolist()
        if class_id != IGNORE_INDEX:
            self.prompts += DrawnPrompts(background_points=tuple(BackgroundPoint(class_id, (x, y)) for y, x in points))
        return bool(points)

    def _draw(self, shape: Shape, class_id: int) -> bool:
        window, mask = shape.draw(self.spec.size, self.spec.thickness, self.spec.radius)
        has_pixel = bool(mask.any())
        self._num_drawn += has_pixel
        self.labels[window][mask], self._top[window][mask] = class_id, self._num_drawn
        return has_pixel

    def count_left_out(self) -> Counter[str]:
        """How many shapes leave no pixel, by kind."""
        covered = self._num_drawn - int(np.count_nonzero(np.bincount(self._top.ravel())[1:]))
        return self._left_out + Counter({"shapes that later ones cover wholly": covered})


def box_corners(
    left: float, top: float, right: float, bottom: float, angle: float = 0, about_corner: bool = False
) -> np.ndarray:
    """The corners (4, 2) of a box rotated clockwise by degrees about its center, or its first corner."""
    if right < left or bottom < top:
        raise ValueError("a box that ends before it begins")
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float)
    middle = corners[0] if about_corner else corners.mean(0)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return (corners - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle


def ellipse(name: str, x: float, y: float, radius_x: float, radius_y: float, angle: float = 0) -> Shape:
    """An ellipse as a shape; its outline is made when it is drawn, as it takes a thousand times its numbers' memory."""
    if radius_x < 0 or radius_y < 0:
        raise ValueError("an ellipse with a negative radius")
    around = box_corners(x - radius_x, y - radius_y, x + radius_x, y + radius_y, angle)
    return Shape(name, "polygon", around, partial(_fill_ellipse, (x, y, radius_x, radius_y, angle)))


def ellipse_outline(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0) -> np.ndarray:
    """An ellipse around (x, y), rotated clockwise by degrees, as a polygon (N, 2) within 0.01 pixels of it."""
    # the gap between a chord and its arc is r (1 - cos(π / n))
    count = int(np.clip(np.ceil(np.pi * np.sqrt(max(radius_x, radius_y, 1) / 0.02)), 16, 4096))
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False)
    points = np.stack([radius_x * np.cos(turns), radius_y * np.sin(turns)], axis=1)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return points @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
