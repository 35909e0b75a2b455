"""Titled pictures of one image, arranged on a page with legends."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sesam.artifacts.component_records import Selected
from sesam.artifacts.drawn_prompts import DrawnBox
from sesam.artifacts.image_io import full_palette
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.sources import SOURCE_PALETTE, SOURCE_TITLES
from sesam.geometry.rle import rle_to_mask
from sesam.labels import IGNORE_INDEX, confident_labels

Color = tuple[int, int, int]
Kind = Literal["image", "classes", "sources", "confidence"]  # which colors and legend a map has

_SIDE = 512  # pixels of a tile's longer side, at most
_GAP, _LINE, _TEXT, _SWATCH = 12, 40, 26, 24
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


class Step(NamedTuple):
    """A titled map of an image.

    values: (H, W) uint8 of the kind, or a picture (h, w, 3) uint8 RGB. confidence: of classes, (H, W) uint8.
    threshold: below it the map is faded; a number in [0, 1], or one of each class, (K,).
    """

    name: str
    kind: Kind
    values: np.ndarray
    confidence: np.ndarray | None = None
    threshold: float | np.ndarray = 0


def compose_page(rows: Sequence[Sequence[Step]], manifest: Manifest) -> Image.Image:
    """Rows of tiles of one image, and legends below."""
    font = ImageFont.load_default(_TEXT)
    tiles = [[fit_to_tile(draw_step(step, manifest.palette)) for step in row] for row in rows]
    height, width = tiles[0][0].shape[:2]
    cell_width, cell_height = width + _GAP, _LINE + height + _GAP
    page_width = max(map(len, rows)) * cell_width + _GAP
    steps = [step for row in rows for step in row]
    entries, page_height = _arrange_legends(steps, manifest, font, len(rows) * cell_height, page_width)
    page = Image.new("RGB", (page_width, page_height), _PAPER)
    draw = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        for j, step in enumerate(row):
            x, y = _GAP + j * cell_width, i * cell_height
            title = step.name if step.confidence is None else f"{step.name}, pale where unsure"
            draw.text((x, y + _LINE // 2), title, _INK, font, anchor="lm")
            page.paste(Image.fromarray(tiles[i][j]), (x, y + _LINE))
    for x, y, name, color in entries:
        draw.rectangle((x, y + 8, x + _SWATCH, y + 8 + _SWATCH), color, _INK)
        draw.text((x + _SWATCH + _GAP, y + 8 + _SWATCH // 2), name, _INK, font, anchor="lm")
    return page


def draw_step(step: Step, palette: Sequence[Color]) -> np.ndarray:
    """A step's map in its colors, (H, W, 3) uint8 RGB, faded where its confidence is below its threshold."""
    if step.values.ndim == 3:
        return step.values
    if step.kind == "confidence":
        return np.repeat(step.values[..., None], 3, axis=2)
    picture = full_palette(SOURCE_PALETTE if step.kind == "sources" else palette)[step.values]
    if step.confidence is None:
        return picture
    return fade(picture, confident_labels(step.values, step.confidence, step.threshold) == IGNORE_INDEX)


def downscale(pixels: np.ndarray, side: int, interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 pixels with at most `side` of them along the longer side."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return pixels
    size = (max(1, width * side // longer), max(1, height * side // longer))
    return cv2.resize(pixels, size, interpolation=interpolation)


def fit_to_tile(pixels: np.ndarray) -> np.ndarray:
    """A copy of (H, W, 3) uint8 pixels at tile size: enlarged by a whole factor to stay crisp, or averaged down."""
    factor = max(1, _SIDE // max(pixels.shape[:2]))
    return downscale(pixels, _SIDE).repeat(factor, axis=0).repeat(factor, axis=1)


def fade(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 pixels, faded toward white at `where`, (H, W) bool."""
    return np.where(where[..., None], pixels // 4 + 191, pixels).astype(np.uint8)


def overlay_masks(image: np.ndarray, selected: Sequence[Selected], palette: Sequence[Color]) -> np.ndarray:
    """The photograph (H, W, 3) uint8 RGB at tile size, faded, and on it the kept masks, tinted with their classes."""
    gray = fit_to_tile(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
    picture = fade(gray, np.ones(gray.shape[:2], bool))
    masks = [(rle_to_mask(chosen.rle, image.shape[:2]), chosen.class_id) for chosen in selected if chosen.kept]
    for mask, class_id in sorted(masks, key=lambda pair: -pair[0].sum()):  # the largest below
        inside = _scale_mask(mask, gray) == 1
        picture[inside] = 0.35 * gray[inside] + 0.65 * np.asarray(palette[class_id])
        draw_outline(picture, mask, _PAPER)
    return picture


def overlay_boxes(image: np.ndarray, boxes: Sequence[DrawnBox], palette: Sequence[Color]) -> np.ndarray:
    """The photograph (H, W, 3) uint8 RGB at tile size, with boxes that annotators drew in their classes' colors."""
    picture = fit_to_tile(image).copy()
    scale = np.tile(np.array(picture.shape[1::-1]) / image.shape[1::-1], 2)
    for entry in boxes:
        left, top, right, bottom = np.round(np.array(entry.box) * scale).astype(int).tolist()
        cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), tuple(palette[entry.class_id]), 2)
    return picture


def draw_outline(picture: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Draw the outline of a mask (H, W) bool on a picture (h, w, 3) uint8 of another size."""
    outlines, _ = cv2.findContours(_scale_mask(mask, picture), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, color, 2)


def _scale_mask(mask: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _arrange_legends(
    steps: Sequence[Step], manifest: Manifest, font: Any, y: int, page_width: int
) -> tuple[list[tuple[int, int, str, Color]], int]:
    """x, y, name, color of the steps' classes and, if shown, of all sources, wrapped, from `y` on; and their end."""
    labels = [step.values.ravel() for step in steps if step.kind == "classes" and step.values.ndim == 2]
    legends = [{manifest.classes[k]: manifest.palette[k] for k in np.setdiff1d(np.concatenate(labels), [IGNORE_INDEX])}]
    if any(step.kind == "sources" for step in steps):
        legends.append(dict(zip(SOURCE_TITLES, SOURCE_PALETTE, strict=True)))
    entries = []
    for legend in legends:
        x = _GAP
        for name, color in legend.items():
            width = _SWATCH + _GAP + int(font.getlength(name))
            if x > _GAP and x + width + _GAP > page_width:
                x, y = _GAP, y + _LINE
            entries.append((x, y, name, color))
            x += width + 3 * _GAP
        y += _LINE + _GAP
    return entries, y
