"""Titled pictures of one image, arranged on a page with legends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sesam.artifacts.label_png import full_palette
from sesam.geometry.rle import largest_first, rle_to_mask
from sesam.labels import IGNORE_INDEX

Color = tuple[int, int, int]

_SIDE = 512  # pixels of a tile's longer side, at most
_GAP, _LINE, _TEXT, _SWATCH = 12, 40, 26, 24
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """A titled picture; pixels: (H, W, 3) uint8 RGB."""

    title: str
    pixels: np.ndarray


def compose_page(rows: Sequence[Sequence[Tile]], legends: Sequence[Mapping[str, Color]]) -> Image.Image:
    """Rows of tiles of one image and each legend on lines of its own, beside a short first row or below."""
    font = ImageFont.load_default(_TEXT)
    pictures = [[fit_to_tile(tile.pixels) for tile in row] for row in rows]
    height, width = pictures[0][0].shape[:2]
    across = max(len(row) for row in rows) * (width + _GAP) + _GAP
    down = len(rows) * (_LINE + height + _GAP)
    right_of_row = len(rows[0]) * (width + _GAP) + 3 * _GAP
    entries, bottom = _arrange_legends(legends, font, (right_of_row, _LINE), across)
    if right_of_row >= across or bottom > _LINE + height:
        entries, bottom = _arrange_legends(legends, font, (_GAP, down), across)
    page = Image.new("RGB", (across, max(down, bottom)), _PAPER)
    draw = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            x, y = _GAP + j * (width + _GAP), i * (_LINE + height + _GAP)
            draw.text((x, y + _LINE // 2), tile.title, _INK, font, anchor="lm")
            page.paste(Image.fromarray(pictures[i][j]), (x, y + _LINE))
    for x, y, name, color in entries:
        draw.rectangle((x, y + 8, x + _SWATCH, y + 8 + _SWATCH), color, _INK)
        draw.text((x + _SWATCH + _GAP, y + 8 + _SWATCH // 2), name, _INK, font, anchor="lm")
    return page


def fit_to_tile(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 pixels at tile size: enlarged by a whole factor to stay crisp, or averaged down."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= _SIDE:
        return pixels.repeat(_SIDE // longer, axis=0).repeat(_SIDE // longer, axis=1)
    size = (max(1, width * _SIDE // longer), max(1, height * _SIDE // longer))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def colorize(labels: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """(H, W) uint8 class ids in their colors, (H, W, 3) uint8; unlabeled black."""
    return full_palette(palette)[labels]


def fade(pixels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 pixels, faded toward white where `path_to_delete`, (H, W) bool."""
    return np.where(where[..., None], pixels // 4 + 191, pixels).astype(np.uint8)


def overlay_masks(image: np.ndarray, selected: Sequence[Mapping[str, Any]], palette: Sequence[Color]) -> np.ndarray:
    """The photograph at tile size, faded, and on it the masks that selection kept, tinted with their classes.

    image: (H, W, 3) uint8 RGB. selected: the components of select_masks; those without a kept
    mask are left out.
    """
    shape = image.shape[:2]
    kept = [component for component in selected if component["candidate"] is not None]
    gray = fit_to_tile(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
    picture = fade(gray, np.ones(gray.shape[:2], bool))
    for component in largest_first(kept, shape):
        mask: np.ndarray = rle_to_mask(component["rle"], shape).astype(np.uint8)
        mask = cv2.resize(mask, gray.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        inside = mask == 1
        picture[inside] = 0.35 * gray[inside] + 0.65 * np.asarray(palette[component["class"]])
        outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, _PAPER, 2)
    return picture


def class_legend(maps: Iterable[np.ndarray], classes: Sequence[str], palette: Sequence[Color]) -> dict[str, Color]:
    """Names and colors of the classes that occur in any of the (H, W) uint8 label maps."""
    seen = sorted(set().union(*(np.unique(labels).tolist() for labels in maps)) - {IGNORE_INDEX})
    return {classes[k]: palette[k] for k in seen}


def _arrange_legends(
    legends: Sequence[Mapping[str, Color]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    start: tuple[int, int],
    right: int,
) -> tuple[list[tuple[int, int, str, Color]], int]:
    """x, y, name and color of every entry from `start` (x, y) on, wrapped at `right`, and where they end."""
    left, y = start
    entries = []
    for legend in legends:
        x = left
        for name, color in legend.items():
            width = _SWATCH + _GAP + int(font.getlength(name))
            if x > left and x + width + _GAP > right:
                x, y = left, y + _LINE
            entries.append((x, y, name, color))
            x += width + 3 * _GAP
        y += _LINE + _GAP
    return entries, y
