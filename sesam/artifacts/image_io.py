"""Reading and writing images and label PNGs: 8-bit, one channel, palette attached."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sesam.artifacts.atomic_io import atomic_path, read_bytes
from sesam.errors import SesamError

# Pillow knows many more by their first bytes, and starts other programs for some
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
LABEL_FORMATS = ("PNG",)  # a JPEG's values are not those that were saved
SIGNATURES = {
    b"\xff\xd8": "a JPEG",
    b"RIFF": "a WebP",
    b"II*": "a TIFF",
    b"MM\0*": "a TIFF",
    b"BM": "a BMP",
    b"GIF8": "a GIF",
    b"version https://git-lfs": "a pointer of git LFS (run `git lfs pull`)",
    b"<": "HTML or XML",
    b"%PDF": "a PDF",
    b"PK": "an archive",
}
ORIENTATION = 0x0112  # EXIF tag
SOURCE_DIGEST = "made of"  # key of a PNG text chunk

# a file of one color takes any memory, so larger ones need some bytes per pixel; labels in gray take little
MAX_EMPTY_PIXELS, MAX_PIXELS_PER_BYTE = 1 << 26, 64

Palette = Sequence[Sequence[int]]  # RGB per class, 0 to 255


def read_image(path: Path, content: bytes | None = None) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB; SesamError if it is missing or corrupt. content: the file's bytes, if known."""
    with open_image(path, content) as image:
        check_exif_orientation(path, image)
        return np.array(image.convert("RGB"))


def check_exif_orientation(path: Path, image: Image.Image) -> None:
    """SesamError if an image is stored rotated: its label might not be."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as problem:  # of any kind, because Pillow does not check a PNG's EXIF
        raise SesamError(f"{path} has unreadable EXIF data ({problem}). Save it without EXIF.") from None
    if orientation not in (0, 1):
        raise SesamError(
            f"{path} is stored rotated or mirrored (EXIF orientation {orientation}), and its label may not be. Save it "
            "upright, without that tag."
        )


def read_label(path: Path) -> np.ndarray:
    """The values of a one-channel PNG, (H, W) uint8; SesamError if it is missing, corrupt or not 8-bit."""
    with open_image(path, formats=LABEL_FORMATS) as image:
        if image.mode not in ("L", "P"):
            raise SesamError(f"{path} has mode {image.mode}; expected one 8-bit channel of class ids. Convert it.")
        return np.array(image)


def write_label(path: Path, values: np.ndarray, palette: Palette, source_digest: str | None = None) -> None:
    """Write (H, W) uint8 values as a palette PNG; 255 is black. source_digest: stored in the file."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8), mode="P")
    image.putpalette(full_palette(palette).tobytes())
    info = PngInfo()
    if source_digest is not None:
        info.add_text(SOURCE_DIGEST, source_digest)
    with atomic_path(path) as tmp:
        image.save(tmp, format="PNG", pnginfo=info)


def write_gray(path: Path, values: np.ndarray) -> None:
    """Write (H, W) uint8 values as a gray PNG."""
    with atomic_path(path) as tmp:
        Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)).save(tmp, format="PNG")


def full_palette(palette: Palette) -> np.ndarray:
    """A palette of K RGB colors extended to (256, 3) uint8, the rest black."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return colors


@contextmanager
def open_image(path: Path, content: bytes | None = None, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open and decode an image file; SesamError for any failure. content: the file's bytes, if known."""
    content = read_bytes(path) if content is None else content
    try:
        Image.open(BytesIO(content), formats=formats).verify()  # a PNG's checksums, which decoding ignores
        image = Image.open(BytesIO(content), formats=formats)
        # Pillow's names of the layouts in the file; a TIFF's come with numbers
        raw_modes = [str(tile[-1][0] if isinstance(tile[-1], tuple) else tile[-1]) for tile in image.tile]
        if image.width * image.height > max(MAX_EMPTY_PIXELS, MAX_PIXELS_PER_BYTE * len(content)) and image.mode != "L":
            raise ValueError(f"{image.width}x{image.height} pixels in {len(content)} bytes, which is one color")
        deep = image.mode[:1] in "IF" or any("16" in mode for mode in raw_modes)
        pages = getattr(image, "n_frames", 1)
        packed = any(mode in ("L;2", "L;4") for mode in raw_modes)
        image.load()
    except UnidentifiedImageError:
        raise SesamError(f"{path} {_describe(content)}; expected {' or '.join(formats)}.") from None
    except Image.DecompressionBombError:
        raise SesamError(f"{path} is larger than 178 million pixels. Cut it (`sesam tile split`).") from None
    except (OSError, SyntaxError, ValueError) as problem:
        raise SesamError(f"{path} cannot be read as an image ({problem}). Replace it with an intact copy.") from None
    if pages > 1:
        raise SesamError(f"{path} has {pages} pages or frames. Save each as a file.")
    if deep:  # Pillow would reduce it to 8 bits silently
        raise SesamError(f"{path} has more than 8 bits per channel. Convert it to 8.")
    if packed:  # Pillow would scale the values: with 4 bits, class 1 becomes 17
        raise SesamError(f"{path} is gray with less than 8 bits per pixel. Convert it to 8 with equal values.")
    with closing(image):
        yield image


def _describe(content: bytes) -> str:
    """What a file that is not an image of the expected format seems to be."""
    if not content:
        return "is empty"
    if b"ftyp" in content[:12]:
        return "is a HEIC, AVIF or video file"
    kinds = [kind for start, kind in SIGNATURES.items() if content.lstrip()[: len(start)] == start]
    return f"is {kinds[0]}" if kinds else "is not an image, or damaged"
