"""Reading and writing images and label PNGs: 8-bit, one channel, palette attached."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sesam.artifacts.atomic_io import atomic_path, read_bytes
from sesam.errors import SesamError

FORMATS = ("PNG", "JPEG")  # Pillow knows many more by their first bytes, and starts other programs for some
ORIENTATION = 0x0112  # EXIF's number of it
SOURCE_DIGEST = "made of"  # what it is called in a label's file

Palette = Sequence[Sequence[int]]  # of each class its color, RGB, 0 to 255


def read_image(path: Path, content: bytes | None = None) -> np.ndarray:
    """A photograph as (H, W, 3) uint8 RGB; SesamError if it is missing or damaged. content: its bytes, if known."""
    with open_image(path, content) as image:
        check_exif_orientation(path, image)
        return np.array(image.convert("RGB"))


def check_exif_orientation(path: Path, image: Image.Image) -> None:
    """SesamError if an image is stored turned: its label might not be."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as problem:  # of many kinds, for Pillow reads a PNG's EXIF as it stands
        raise SesamError(f"{path} has EXIF data that cannot be read ({problem}). Store it without.") from None
    if orientation not in (0, 1):
        raise SesamError(
            f"{path} is stored turned or mirrored (its EXIF orientation says so), and its label may not be. Store "
            "it upright, without that entry."
        )


def read_label(path: Path) -> np.ndarray:
    """A one-channel PNG's values, (H, W) uint8; SesamError if it is missing, damaged or not 8-bit."""
    with open_image(path) as image:
        if image.mode not in ("L", "P"):
            raise SesamError(f"{path} has mode {image.mode}; expected one 8-bit channel of class ids. Convert it.")
        return np.array(image)


def write_label(path: Path, values: np.ndarray, palette: Palette, made_of: str | None = None) -> None:
    """Write (H, W) uint8 values as a palette PNG; 255 is shown black. made_of: a digest that the file is to hold."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8), mode="P")
    image.putpalette(full_palette(palette).tobytes())
    about = PngInfo()
    if made_of is not None:
        about.add_text(SOURCE_DIGEST, made_of)
    with atomic_path(path) as unfinished:
        image.save(unfinished, format="PNG", pnginfo=about)


def write_gray(path: Path, values: np.ndarray) -> None:
    """Write (H, W) uint8 values as a gray PNG."""
    with atomic_path(path) as unfinished:
        Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)).save(unfinished, format="PNG")


def full_palette(palette: Palette) -> np.ndarray:
    """A palette of K RGB colors extended to (256, 3) uint8, the rest black."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return colors


class open_image:
    """Opens and decodes an image file; every way that fails is a SesamError."""

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        self.path, self.content = path, content

    def __enter__(self) -> Image.Image:
        content = read_bytes(self.path) if self.content is None else self.content
        try:
            Image.open(BytesIO(content), formats=FORMATS).verify()  # a PNG's check sums, which decoding leaves out
            self.image = Image.open(BytesIO(content), formats=FORMATS)
            stored = [str(tile[-1]) for tile in self.image.tile]  # Pillow's name of how pixels lie in the file
            deep = self.image.mode[:1] in "IF" or any("16" in one for one in stored)
            packed = any(one in ("L;2", "L;4") for one in stored)
            self.image.load()
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as problem:
            raise SesamError(
                f"{self.path} cannot be read as an image ({problem}). Replace the file with an intact copy."
            ) from None
        if deep:  # Pillow would make 8 bits of it without a word
            raise SesamError(f"{self.path} has more than 8 bits a channel. Convert it.")
        if packed:  # Pillow would scale them: class 1 of 4 bits became 17
            raise SesamError(f"{self.path} is gray with less than 8 bits a pixel. Convert it to 8, with equal values.")
        return self.image

    def __exit__(self, *_: object) -> None:
        self.image.close()
