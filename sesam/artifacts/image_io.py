"""Reading and writing images and label PNGs: 8-bit, one channel, palette attached."""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sesam.artifacts.atomic_io import atomic_path, read_bytes
from sesam.errors import SesamError, limit_reached

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

# a file of one color takes any memory, so what takes more than this needs as much more of a file
MAX_EMPTY_MEMORY, MAX_MEMORY_PER_BYTE = 3 << 28, 768
DECODING = {"L": 1, "WEBP": 28, "JPEG": 16}  # bytes of memory per pixel, by mode or format; others at most 12
MAX_SIDE = 1 << 20  # pixels; a row has 26 bytes at least
ROWS_AT_ONCE = 1 << 20  # pixels that are converted to RGB at once

SOS = 0xDA
PNG, EOI = b"\x89PNG\r\n\x1a\n", b"\xff\xd9"
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # of a JPEG's segments; restarts are among the data
MAX_SCANS = 64  # of a JPEG, each of which goes over all pixels; programs write about ten
ARITHMETIC = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # frames that are not Huffman's
# bytes that the decoder looks ahead: ones, which are no code, so hardly a block of pixels; and others
PADDINGS = (b"\xff\x00" * 9, bytes(18))

Palette = Sequence[Sequence[int]]  # RGB per class, 0 to 255


def read_image(path: Path, content: bytes | None = None) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB; SesamError if it is missing or corrupt. content: the file's bytes, if known."""
    content = read_bytes(path) if content is None else content
    with _open_upright(path, content) as image:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, ROWS_AT_ONCE // image.width)  # a whole image in RGB would have twice the memory
        for top in range(0, image.height, rows):
            part = image.crop((0, top, image.width, min(top + rows, image.height)))
            pixels[top : top + rows] = np.asarray(part if part.mode == "RGB" else part.convert("RGB"))
        return pixels


def read_size(path: Path, content: bytes) -> tuple[int, int]:
    """(height, width) of an image that `read_image` reads: it is decoded; SesamError as there."""
    with _open_upright(path, content) as image:
        return image.height, image.width


@contextmanager
def _open_upright(path: Path, content: bytes) -> Iterator[Image.Image]:
    with open_image(path, content) as image:
        check_exif_orientation(path, image)
        if image.mode == "L" and not _has_room(image, DECODING["L"] + 3, len(content)):
            raise SesamError(f"{path} is nearly one color, and too large for memory. Cut it (`sesam tile split`).")
        yield image


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
        image.save(tmp, format="PNG", pnginfo=info, compress_type=zlib.Z_RLE)  # three times as fast, equally small


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
        image = Image.open(BytesIO(_join_idat(content)), formats=formats)
        # Pillow's names of the layouts in the file; a TIFF's come with numbers
        raw_modes = [str(tile[-1][0] if isinstance(tile[-1], tuple) else tile[-1]) for tile in image.tile]
        bytes_per_pixel = DECODING.get(image.mode, DECODING.get(image.format or "", 12))
        if max(image.size) > MAX_SIDE or not _has_room(image, bytes_per_pixel, len(content)):
            raise ValueError(f"{image.width}x{image.height} pixels in {len(content)} bytes, which is one color")
        if image.mode == "P" and image.palette is None:
            raise ValueError("it lacks its palette")
        deep = image.mode[:1] in "IF" or any("16" in mode for mode in raw_modes)
        # a phone's JPEG may have a depth or brightness map behind the photograph
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        packed = any(mode in ("L;2", "L;4") for mode in raw_modes)
        _load_strictly(image, content)
    except UnidentifiedImageError:
        reason = _describe(content)
        if any(reason.endswith(f" {name}") for name in formats):
            reason += " with an unusual or damaged header. Save it again as an ordinary one"
        raise SesamError(f"{path} {reason}; expected {' or '.join(formats)}.") from None
    except Image.DecompressionBombError:
        raise SesamError(f"{path} is larger than 178 million pixels. Cut it (`sesam tile split`).") from None
    except Exception as problem:  # of any kind, because the file may hold anything
        if limit_reached(problem) is not None:
            raise
        raise SesamError(f"{path} cannot be read as an image ({problem}). Replace it with an intact copy.") from None
    if pages > 1:
        raise SesamError(f"{path} has {pages} pages or frames. Save each as a file.")
    equal = formats == LABEL_FORMATS  # image editors scale values
    if deep:  # Pillow would reduce it to 8 bits silently
        raise SesamError(f"{path} has more than 8 bits per channel. Convert it to 8{' with equal values' * equal}.")
    if packed:  # Pillow would scale the values: with 4 bits, class 1 becomes 17
        raise SesamError(f"{path} is gray with less than 8 bits per pixel. Convert it to 8 with equal values.")
    with closing(image):
        yield image


def _has_room(image: Image.Image, bytes_per_pixel: int, file_bytes: int) -> bool:
    """Whether an image may take so much memory, for a file of its size."""
    memory = image.width * image.height * bytes_per_pixel
    return memory <= max(MAX_EMPTY_MEMORY, MAX_MEMORY_PER_BYTE * file_bytes)


def _load_strictly(image: Image.Image, content: bytes) -> None:
    """Decode an image; ValueError where the data end before the pixels: Pillow would leave these black or gray."""
    if image.format == "JPEG":
        end, is_single = _end_of_scans(content)
        _load_jpeg(image, content[:end], is_single, PADDINGS[0])
        if not is_single:  # a scan that refines what earlier ones decoded takes any bits as its own
            with Image.open(BytesIO(content), formats=("JPEG",)) as again:
                _load_jpeg(again, content[:end], is_single, PADDINGS[1])
                if sha256(again.tobytes()).digest() != sha256(image.tobytes()).digest():
                    raise ValueError("its data end too early")
    elif image.format != "PNG":
        image.load()
    elif not _fills(image, len(content), 165):
        again = Image.open(BytesIO(_join_idat(content)), formats=("PNG",))  # the last pixel may be 165, but not also 0
        if not _fills(again, len(content), 0):
            raise ValueError("its rows end too early")


def _fills(image: Image.Image, num_bytes: int, value: int) -> bool:
    """Decode a PNG over a value; whether that is gone from the pixel that is decoded last."""
    image.decodermaxblock = num_bytes  # type: ignore[attr-defined]  # then zlib's checksum is compared too
    image.im = Image.new(image.mode, image.size, value).im
    last = [side - 1 for side in image.size]
    if image.info.get("interlace"):  # every second row comes last, or of one row every second pixel
        axis = 1 if image.height > 1 else 0
        last[axis] = max(0, last[axis] - 1 | 1)
    before = image.im.getpixel(tuple(last))
    image.load()
    return bool(image.im.getpixel(tuple(last)) != before)


def _join_idat(content: bytes) -> bytes:
    """A PNG with the data of its pixels in one chunk, because Pillow ends with the chunk that fills the last row."""
    parts, at = [], len(PNG)
    while content.startswith(PNG) and (length := int.from_bytes(content[at : at + 4])) <= len(content) - at - 12:
        parts.append((content[at + 4 : at + 8], at, at + length + 12))
        at += length + 12
    data = [(start, end) for name, start, end in parts if name == b"IDAT"]
    if len(data) < 2 or any(end != start for (_, end), (start, _) in pairwise(data)):
        return content
    length = sum(end - start - 12 for start, end in data)
    view = memoryview(content)
    joined = (view[start + 8 : end - 4] for start, end in data)
    # without checksum, which Pillow does not look at when it decodes; those of the file have been verified
    return b"".join((view[: data[0][0]], length.to_bytes(4), b"IDAT", *joined, bytes(4), view[data[-1][1] :]))


def _load_jpeg(image: Image.Image, scans: bytes, is_single: bool, padding: bytes) -> None:
    """Decode a JPEG without its end; libjpeg fills what its last scan lacks with gray, and reports it to nobody."""
    ((codec, extents, _, arguments),) = image.tile  # type: ignore[attr-defined]
    image.load_prepare()  # type: ignore[attr-defined]
    decoder = Image._getdecoder(image.mode, codec, arguments)
    try:
        decoder.setimage(image.im, extents)
        data = scans + padding  # not the end: a decoder that lacks data waits
        consumed, status = decoder.decode(data)
        # one scan is complete without the end; several wait for it, when they are
        if consumed >= 0 and (is_single or consumed < len(data) - 1):
            raise ValueError("its data end too early")
        if consumed >= 0:
            _, status = decoder.decode(data[consumed:] + EOI)
        if status < 0:
            raise ValueError("broken data")
    finally:
        decoder.cleanup()
    image.tile = []  # type: ignore[attr-defined]


def _end_of_scans(content: bytes) -> tuple[int, bool]:
    """Where a JPEG's end marker is, and whether it has one scan; ValueError if there is none, or no way to tell."""
    at, scans = 2, 0
    while found := MARKER.search(content, at):
        if found[0] == EOI:
            return found.start(), scans == 1
        if found[0][1] in ARITHMETIC:
            raise ValueError("it is coded arithmetically or without loss; save it as an ordinary JPEG")
        scans += found[0][1] == SOS
        if scans > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} scans; save it as an ordinary JPEG")
        at = found.end() + int.from_bytes(content[found.end() : found.end() + 2])
    raise ValueError("its end is missing")


def _describe(content: bytes) -> str:
    """What a file that is not an image of the expected format seems to be."""
    if not content:
        return "is empty"
    if b"ftyp" in content[:12]:
        return "is a HEIC, AVIF or video file"
    kinds = [kind for start, kind in SIGNATURES.items() if content.lstrip()[: len(start)] == start]
    return f"is {kinds[0]}" if kinds else "is not an image, or damaged"
