"""Pictures inside of a page: data URLs of photographs and maps, small enough to be shown by the dozen."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from stages.common.images import full_palette
from stages.pictures.tiles import Colour

SIDE = 640  # pixels of a picture's longer side, at most


def photograph(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as the data URL of a JPEG."""
    return _url(Image.fromarray(_smaller(pixels, cv2.INTER_AREA)), "JPEG", quality=85)


def label_map(values: np.ndarray, palette: Sequence[Colour], nothing: int) -> str:
    """(H, W) uint8 in its colours as the data URL of a PNG; the value `nothing` is transparent."""
    picture = Image.fromarray(_smaller(values, cv2.INTER_NEAREST), mode="P")
    picture.putpalette(full_palette(palette).tobytes())
    return _url(picture, "PNG", transparency=nothing, optimize=True)


def grey(values: np.ndarray) -> str:
    """(H, W) uint8 as the data URL of a PNG."""
    return _url(Image.fromarray(_smaller(values, cv2.INTER_NEAREST)), "PNG", optimize=True)


def _smaller(pixels: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= SIDE:
        return np.ascontiguousarray(pixels)
    size = (max(1, width * SIDE // longer), max(1, height * SIDE // longer))
    return cv2.resize(pixels, size, interpolation=interpolation)


def _url(picture: Image.Image, form: str, **options: int | bool) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
