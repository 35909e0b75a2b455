"""`sesam tile`: images split into tiles, and labels of tiles merged, for any sizes."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params, folder_dataset, run  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.image_io import ORIENTATION, read_image, read_label, write_label
from sesam.artifacts.manifest import Manifest
from sesam.cli.main import main
from sesam.errors import SesamError

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def split(folder: Path, out: Path, tile_size: int, overlap: int) -> None:
    size = ["--tile-size", str(tile_size), "--overlap", str(overlap)]
    main(["tile", "split", str(folder), "--out", str(out), *size])


def merge(folder: Path, tiles: Path, out: Path) -> None:
    main(["tile", "merge", str(folder), "--tiles", str(tiles), "--out", str(out)])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.data())
def test_merge_restores_what_was_split(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, tile_size: int, data: st.DataObject
) -> None:
    """Also where tiles are wrong at their edges, but not at those of the image."""
    folder, labels, overlap = (
        tmp_path_factory.mktemp("tiles"),
        noise(height, width),
        data.draw(st.integers(2, tile_size // 2)),
    )
    write_label(folder / "whole/labels/train/a b/one.png", labels, PALETTE)
    split(folder / "whole", folder / "tiles", tile_size, overlap)
    for path in (folder / "tiles").rglob("*.png"):
        values, (top, left) = read_label(path), map(int, path.stem.split("-"))
        assert np.array_equal(values, labels[top : top + tile_size, left : left + tile_size])
        inner = tuple(
            slice(overlap // 2 if begin else 0, size if begin + size == whole else size - overlap // 2)
            for begin, size, whole in zip((top, left), values.shape, labels.shape, strict=True)
        )
        wrong = np.full_like(values, 3)
        wrong[inner] = values[inner]
        write_label(path, wrong, PALETTE)
    merge(folder / "tiles/labels/train", folder / "tiles", folder / "merged")
    merged = folder / "merged/a b/one.png"
    assert np.array_equal(read_label(merged), labels)
    assert Image.open(merged).getpalette()[:9] == [value for color in PALETTE for value in color]


@pytest.mark.parametrize("colors", [1, 2, 12])
def test_values_beyond_the_palette_are_kept(tmp_path: Path, colors: int) -> None:
    """Pillow packs an image of few colors into fewer bits, and cut 255 to 15 or less."""
    labels, path = np.random.default_rng(0).choice([0, 1, 200, 255], (20, 30)).astype(np.uint8), tmp_path / "in/one.png"
    write_label(path, labels, PALETTE)
    content = path.read_bytes()
    start = content.index(b"PLTE")
    palette = b"PLTE" + content[start + 4 : start + 4 + 3 * colors]
    chunk = len(palette[4:]).to_bytes(4, "big") + palette + zlib.crc32(palette).to_bytes(4, "big")
    path.write_bytes(content[: start - 4] + chunk + content[start + 4 + 768 + 4 :])
    assert np.array_equal(read_label(path), labels)
    split(tmp_path / "in", tmp_path / "tiles", 16, 4)
    assert np.array_equal(read_label(tmp_path / "tiles/one/000000-000000.png"), labels[:16, :16])
    merge(tmp_path / "tiles", tmp_path / "tiles", tmp_path / "merged")
    assert np.array_equal(read_label(tmp_path / "merged/one.png"), labels)


def test_one_bit_labels_keep_their_mode(tmp_path: Path) -> None:
    """So that `prepare` refuses them; in RGB their class 1 would be 255."""
    (tmp_path / "in").mkdir()
    Image.new("1", (20, 20), 1).save(tmp_path / "in/one.png")
    split(tmp_path / "in", tmp_path / "tiles", 16, 4)
    with pytest.raises(SesamError, match="has mode 1"):
        read_label(tmp_path / "tiles/one/000000-000000.png")


def test_train_and_val_may_share_a_name(tmp_path: Path) -> None:
    sizes = {"train": (50, 60), "val": (60, 50)}
    for name, size in sizes.items():
        write_label(tmp_path / f"in/labels/{name}/one.png", noise(*size), PALETTE)
    split(tmp_path / "in", tmp_path / "tiles", 32, 8)
    for name, size in sizes.items():
        merge(tmp_path / f"tiles/labels/{name}", tmp_path / "tiles", tmp_path / name)
        assert np.array_equal(read_label(tmp_path / f"{name}/one.png"), noise(*size))


def test_images_that_cannot_be_split_are_reported(tmp_path: Path) -> None:
    folder, tiles = tmp_path / "in", tmp_path / "tiles"
    write_label(folder / "one.png", noise(50, 60), PALETTE)
    with pytest.raises(SesamError, match="--overlap must be 2 to half of --tile-size, 16 pixels"):
        split(folder, tiles, 32, 20)
    with pytest.raises(SesamError, match="none is"):
        split(tmp_path / "none", tiles, 32, 8)
    Image.new("RGB", (4, 4)).save(folder / "one.jpg")
    with pytest.raises(SesamError, match="two images are called one"):
        split(folder, tiles, 32, 8)
    (folder / "one.jpg").unlink()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (4, 4)).save(folder / "two.jpg", exif=exif)
    with pytest.raises(SesamError, match=r"two\.jpg is stored"):
        split(folder, tiles, 32, 8)
    assert not tiles.exists()
    Image.new("CMYK", (4, 4)).save(folder / "two.jpg")
    split(folder, tiles, 32, 8)
    with pytest.raises(SesamError, match="tiles exists"):
        split(folder, tiles, 32, 8)


def test_a_split_reports_all_images_and_resumes(tmp_path: Path) -> None:
    folder, tiles = tmp_path / "in", tmp_path / "tiles"
    for name in ("a", "b", "c"):
        write_label(folder / f"{name}.png", noise(50, 60), PALETTE)
    whole = (folder / "a.png").read_bytes()
    for name in ("b", "c"):
        (folder / f"{name}.png").write_bytes(whole[:60])
    for _ in range(2):
        with pytest.raises(SesamError, match=r"2 images failed(.|\n)*b\.png(.|\n)*c\.png"):
            split(folder, tiles, 32, 8)
    kept = next((tmp_path / ".tiles.partial/a").iterdir())
    assert kept.exists() and not tiles.exists()
    with pytest.raises(SesamError, match=r"--tile-size is 70000; expected at most 65536"):
        split(folder, tiles, 70_000, 8)


def test_an_image_called_tile_does_not_stand_for_the_tile_size(tmp_path: Path) -> None:
    write_label(tmp_path / "in/tile.png", noise(50, 60), PALETTE)
    (tmp_path / "in/z.png").write_bytes(b"damaged")
    for tile_size in (32, 40):
        with pytest.raises(SesamError, match=r"z\.png"):
            split(tmp_path / "in", tmp_path / "tiles", tile_size, 8)
    with Image.open(tmp_path / ".tiles.partial/tile/000000-000000.png") as image:
        assert image.size == (40, 40)


def test_tiles_that_cannot_be_merged_are_reported(tmp_path: Path) -> None:
    folder, tiles = tmp_path / "in", tmp_path / "tiles"
    write_label(folder / "one.png", noise(50, 60), PALETTE)
    split(folder, tiles, 32, 8)

    def check(message: str, labels: Path = tiles) -> None:
        with pytest.raises(SesamError, match=message):
            merge(labels, tiles, tmp_path / "merged")

    check(r"in has no tiles \(NAME/ROW-COLUMN\.png\)", folder)
    check("is one image's tiles. Name the folder above it", tiles / "one")
    middle, last = (tiles / f"one/{name}.png" for name in ("000018-000014", "000018-000028"))
    write_label(middle, np.zeros((5, 5), np.uint8), PALETTE)
    check(r"000018-000014\.png is 5x5; expected 32x32 pixels of one channel")
    middle.unlink()
    check(r"000018-000014\.png is missing")
    last.rename(middle)
    check(r"000018-000028\.png is missing")
    index = {"tile": 32, "overlap": 8, "sizes": {"three": [1, 1]}}
    write_json(tiles / "tiles.json", index)
    check("has no image one. Name the folder that it was split into")
    write_json(tiles / "tiles.json", index | {"sizes": {"a/one": [1, 1], "b/one": [2, 2]}})
    check("has images one of several sizes; the tiles fit none of them")
    for path in (tiles / "one").iterdir():
        path.unlink()
    write_label(tiles / "one/000000-000000.png", np.zeros((2, 2), np.uint8), PALETTE)
    check("fit several of them. Make the labels again, or rename one and split again")
    for wrong in ([], index | {"overlap": index["tile"]}):
        write_json(tiles / "tiles.json", wrong)
        check(r"tiles\.json is not what `sesam tile split` wrote")
    assert not (tmp_path / "merged/one.png").exists()


def test_tiles_are_a_folder_dataset(folder_dataset: Path) -> None:  # noqa: F811
    whole, weak = folder_dataset / "mine", folder_dataset / "weak"
    for path in sorted((whole / "labels/train").iterdir()):
        write_label(weak / path.name, np.where(read_label(path) == 0, 0, 255), PALETTE)
    sizes = {path.stem: read_image(path).shape[:2] for path in (whole / "images/train").iterdir()}
    for name in ("mine", "weak"):
        split(folder_dataset / name, folder_dataset / "tiles" / name, 16, 4)
    edit_params(folder_dataset, dataset__root="tiles/mine", weak_labels__path="tiles/weak", runtime__num_workers=1)
    for stage in ("prepare", "weak_labels"):
        done = run(f"stages.{stage}", cwd=folder_dataset)
        assert done.returncode == 0, done.stderr
    records = Manifest.load(folder_dataset / "data/dataset").train
    assert len(records) > len(sizes) and {record.id.split("/")[0] for record in records} == sizes.keys()
    merge(folder_dataset / "data/weak", folder_dataset / "tiles/weak", folder_dataset / "merged")
    for name in sizes:
        assert np.array_equal(read_label(folder_dataset / f"merged/{name}.png"), read_label(weak / f"{name}.png"))
