"""Image files whose pixels are not what they seem."""

import io
import zlib
from itertools import product
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from PIL import Image

from sesam.artifacts import image_io
from sesam.artifacts.image_io import ORIENTATION, read_image, read_label
from sesam.datasets.layouts import find_pairs
from sesam.errors import SesamError


def png(path: Path, bits: int, kind: int, palette: bytes = b"") -> None:
    """A PNG of four pixels with the values 0 to 3 in `bits` bits each; kind 0 is gray, 3 has a palette."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))

    row = int("".join(f"{value:0{bits}b}" for value in range(4)), 2).to_bytes(bits * 4 // 8, "big")
    header = pack(">IIBBBBB", 4, 1, bits, kind, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"PLTE", palette) if palette else b"")
    path.write_bytes(start + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_below_8_bits_is_refused(bits: int, tmp_path: Path) -> None:
    png(tmp_path / "gray.png", bits, 0)
    with pytest.raises(SesamError, match=r"gray\.png is gray with less than 8 bits"):
        read_label(tmp_path / "gray.png")
    png(tmp_path / "palette.png", bits, 3, bytes(range(12)))
    assert read_label(tmp_path / "palette.png").tolist() == [[0, 1, 2, 3]]
    png(tmp_path / "gray8.png", 8, 0)
    assert read_label(tmp_path / "gray8.png").tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("orientation, accepted", [(1, True), (3, False), (6, False)])
def test_a_rotated_photograph_is_refused(orientation: int, accepted: bool, tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (6, 4)), Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    if accepted:
        assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)
    else:
        with pytest.raises(SesamError, match=r"a\.jpg is stored rotated"):
            read_image(tmp_path / "a.jpg")


def test_unreadable_exif_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
    with pytest.raises(SesamError, match=r"a\.png has unreadable EXIF data .*Save it without"):
        read_image(tmp_path / "a.png")


KINDS = {"EPS": "not an image", "PPM": "not an image", "GIF": "a GIF", "JPEG": "a JPEG", "TIFF": "a TIFF"}


@pytest.mark.parametrize("image_format", KINDS)
def test_a_label_is_a_png_by_its_bytes(image_format: str, tmp_path: Path) -> None:
    """A photograph may also be a JPEG, TIFF, WebP or BMP, whatever its name."""
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png", format=image_format)
    with pytest.raises(SesamError, match=rf"a\.png is {KINDS[image_format]}.*; expected PNG"):
        read_label(tmp_path / "a.png")
    if image_format in ("JPEG", "TIFF"):
        assert read_image(tmp_path / "a.png").shape == (4, 6, 3)
    else:
        with pytest.raises(SesamError, match=KINDS[image_format]):
            read_image(tmp_path / "a.png")


def test_tiffs_of_more_than_8_bits_or_one_page_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "deep.tif")
    Image.new("L", (6, 4)).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("L", (6, 4))])
    with pytest.raises(SesamError, match="more than 8 bits"):
        read_image(tmp_path / "deep.tif")
    with pytest.raises(SesamError, match="2 pages"):
        read_image(tmp_path / "pages.tif")


def test_two_labels_of_one_image_are_refused(tmp_path: Path) -> None:
    for kind, name in (("images", "z.png"), ("labels", "z.png"), ("labels", "z.PNG")):
        (tmp_path / kind / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / kind / "train" / name, format="PNG")
    with pytest.raises(SesamError, match=r"z\.png and .*z\.PNG both label z|z\.PNG and .*z\.png both label z"):
        find_pairs("folder", tmp_path, ["train"], "train")


def chunk(name: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + name + data + pack(">I", zlib.crc32(name + data))


def png_of(size: tuple[int, int], *idat: bytes, interlaced: bool = False) -> bytes:
    header = chunk(b"IHDR", pack(">IIBBBBB", *size[::-1], 8, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(b"IDAT", data) for data in idat) + chunk(b"IEND", b"")


def test_pngs_whose_rows_are_not_the_header_s_are_refused(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 5, (40, 60)).astype(np.uint8)
    rows = [b"\0" + row.tobytes() for row in label]
    coder = zlib.compressobj(0)
    parts = [coder.compress(b"".join(rows[k : k + 10])) + coder.flush(zlib.Z_FULL_FLUSH) for k in range(0, 40, 10)]
    parts.append(coder.flush())
    path = tmp_path / "a.png"
    for intact in (png_of(label.shape, zlib.compress(b"".join(rows))), png_of(label.shape, *parts)):
        path.write_bytes(intact)
        assert np.array_equal(read_label(path), label)
    for damaged in (
        png_of(label.shape, zlib.compress(b"".join(rows[:20]))),
        png_of((50, 60), zlib.compress(b"".join(rows))),
        png_of(label.shape, parts[0], parts[2], parts[1], *parts[3:]),
    ):
        path.write_bytes(damaged)
        with pytest.raises(SesamError, match=r"a\.png cannot be read as an image .*Replace it with an intact copy"):
            read_label(path)


# first column and row of each pass, and the steps to the next
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


@pytest.mark.parametrize("interlaced", [False, True])
def test_no_row_of_a_png_may_lack(interlaced: bool, tmp_path: Path) -> None:
    """Also of narrow ones, and whatever values they have."""
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    for height, width in product((1, 2, 3, 8, 9), (1, 2, 3, 5, 8)):
        for label in (rng.integers(0, 5, (height, width)).astype(np.uint8), np.full((height, width), 165, np.uint8)):
            passes = [label[y::down, x::right] for x, y, right, down in PASSES] if interlaced else [label]
            rows = [b"\0" + row.tobytes() for one in passes if one.size for row in one]
            path.write_bytes(png_of(label.shape, zlib.compress(b"".join(rows)), interlaced=interlaced))
            assert np.array_equal(read_label(path), label)
            path.write_bytes(png_of(label.shape, zlib.compress(b"".join(rows[:-1])), interlaced=interlaced))
            with pytest.raises(SesamError, match=r"a\.png cannot be read as an image"):
                read_label(path)


def test_a_palette_png_has_its_palette(tmp_path: Path) -> None:
    png(tmp_path / "a.png", 8, 3)
    with pytest.raises(SesamError, match="it lacks its palette"):
        read_image(tmp_path / "a.png")


def test_an_image_takes_no_more_memory_than_its_file_suggests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    monkeypatch.setattr(image_io, "MAX_EMPTY_MEMORY", 1 << 20)
    for mode, image_format, side in (("L", "PNG", 510), ("RGB", "PNG", 290), ("RGB", "WEBP", 190)):
        Image.new(mode, (side, side)).save(path, image_format, lossless=True)
        assert read_image(path).shape == (side, side, 3)
        Image.new(mode, (2 * side, 2 * side)).save(path, image_format, lossless=True)
        with pytest.raises(SesamError, match="one color"):
            read_image(path)
        if mode == "L":
            assert read_label(path).shape == (2 * side, 2 * side)
    Image.new("L", (1, image_io.MAX_SIDE + 1)).save(path, "PNG")
    with pytest.raises(SesamError, match="1x1048577 pixels"):
        read_label(path)


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "best": {"quality": 100, "subsampling": 0},
    "worst": {"quality": 1, "optimize": True},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_jpegs_that_end_before_their_pixels_are_refused(options: dict, tmp_path: Path) -> None:
    """A progressive one ends with its last scan."""
    path = tmp_path / "a.jpg"
    for mode, size in product(("RGB", "L", "CMYK"), ((1, 1), (8, 8), (17, 31), (400, 300), (13_000, 20))):
        small = np.random.default_rng(0).normal(128, 90, (-(-size[1] // 4), -(-size[0] // 4))).clip(0, 255)
        noise = Image.fromarray(small.astype(np.uint8)).resize(size).convert("RGB").convert(mode)
        file = io.BytesIO()
        noise.save(file, "JPEG", **options)
        content = file.getvalue()
        path.write_bytes(content)
        assert np.array_equal(read_image(path), np.array(Image.open(path).convert("RGB")))
        path.write_bytes(content + b"trailing\xff\xd9")
        assert read_image(path).shape == (*size[::-1], 3)
        frame = content.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0")
        taller = content[: frame + 5] + pack(">H", size[1] + 64) + content[frame + 7 :]
        cut = content[: content.rindex(b"\xff\xda") + (len(content) - content.rindex(b"\xff\xda")) // 2] + b"\xff\xd9"
        for damaged in (content[:-2], *([cut, taller] if size[0] > 99 else [])):
            path.write_bytes(damaged)
            with pytest.raises(SesamError, match=r"a\.jpg cannot be read as an image"):
                read_image(path)


def test_unusual_headers_are_refused(tmp_path: Path) -> None:
    """What Pillow does not know, a TIFF whose second page has no entries, and a JPEG of endless scans."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    scan, frame = content.rindex(b"\xff\xda"), content.index(b"\xff\xc2")
    Image.new("L", (6, 4)).save(file := io.BytesIO(), "TIFF")
    tiff = bytearray(file.getvalue())
    entries = int.from_bytes(tiff[4:8], "little")
    end = entries + 2 + 12 * int.from_bytes(tiff[entries : entries + 2], "little")
    tiff[end : end + 4] = pack("<I", len(tiff))
    for damaged, reason in (
        (content[: frame + 4] + b"\x0c" + content[frame + 5 :], "is a JPEG with an unusual or damaged header"),
        (content[:-2] + 64 * content[scan:-2] + b"\xff\xd9", "more than 64 scans"),
        (bytes(tiff) + bytes(6), "cannot be read as an image"),
    ):
        (tmp_path / "a.jpg").write_bytes(damaged)
        with pytest.raises(SesamError, match=reason):
            read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("seed", [10, 15, 29, 47])
def test_a_scan_that_refines_others_is_not_completed(seed: int, tmp_path: Path) -> None:
    """Any bits behind a progressive JPEG's cut look like its own: these were decoded in silence."""
    path, noise = tmp_path / "a.jpg", np.random.default_rng(seed).integers(0, 256, (12, 16), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((64, 48)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    frame, scan = content.index(b"\xff\xc2"), content.rindex(b"\xff\xda")
    taller = content[: frame + 5] + pack(">H", 48 + 64) + content[frame + 7 :]
    for damaged in (content[: scan + (len(content) - scan) // 2] + b"\xff\xd9", taller):
        path.write_bytes(damaged)
        with pytest.raises(SesamError, match=r"a\.jpg cannot be read as an image"):
            read_image(path)


def test_arithmetic_jpegs_are_refused(tmp_path: Path) -> None:
    """Their decoder reads on behind the end, as their standard has it."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content.replace(b"\xff\xc0", b"\xff\xc9", 1))
    with pytest.raises(SesamError, match=r"coded arithmetically .*save it as an ordinary JPEG"):
        read_image(tmp_path / "a.jpg")


def test_files_of_which_pillow_expects_more() -> None:
    """A PNG without pixels, and a TIFF whose second page has nothing."""
    png, tiff = io.BytesIO(), io.BytesIO()
    Image.new("L", (8, 8)).save(png, "PNG")
    Image.new("L", (8, 8)).save(tiff, "TIFF")
    content = png.getvalue()
    start, end = content.index(b"IDAT") - 4, content.index(b"IEND") - 4
    first = int.from_bytes(tiff.getvalue()[4:8], "little")
    pages = bytearray(tiff.getvalue())
    following = first + 2 + 12 * int.from_bytes(pages[first : first + 2], "little")
    pages[following : following + 4] = len(pages).to_bytes(4, "little")
    for damaged in (content[:start] + content[end:], bytes(pages) + bytes(6)):
        with pytest.raises(SesamError, match=r"cannot be read as an image .*Replace it with an intact copy"):
            read_image(Path("x.png"), damaged)
