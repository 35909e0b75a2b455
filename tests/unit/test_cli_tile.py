"""Images cut into tiles, and labels of tiles joined: the same pixels, whatever the sizes."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params, folder_dataset, run  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.label_png import read_image, read_label, write_label
from sesam.artifacts.manifest import Dataset
from sesam.cli import tile as tiles
from sesam.errors import SesamError

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.data())
def test_joined_tiles_are_what_was_cut(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, tile: int, data: st.DataObject
) -> None:
    folder, overlap = tmp_path_factory.mktemp("tiles"), data.draw(st.integers(2, tile // 2))
    labels = np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)
    write_label(folder / "whole/labels/train/a b/one.png", labels, PALETTE)
    tiles.main(["cut", f"{folder}/whole", "--out", f"{folder}/cut", "--tile", f"{tile}", "--overlap", f"{overlap}"])
    for path in (folder / "cut").rglob("*.png"):
        top, left = map(int, path.stem.split("-"))
        assert np.array_equal(read_label(path), labels[top : top + tile, left : left + tile])
    tiles.main(["join", f"{folder}/cut/labels/train", "--cut", f"{folder}/cut", "--out", f"{folder}/joined"])
    joined = folder / "joined/a b/one.png"
    assert np.array_equal(read_label(joined), labels)
    assert Image.open(joined).getpalette()[:9] == [value for color in PALETTE for value in color]


def test_values_beyond_the_palette_stay(tmp_path: Path) -> None:
    """Pillow packs an image of few colors into fewer bits, and cut 255 to 15 or less."""
    labels = np.random.default_rng(0).choice([0, 1, 200, 255], (20, 30)).astype(np.uint8)
    for colors in (1, 2, 12):
        folder = tmp_path / f"{colors}"
        write_label(folder / "whole/one.png", labels, PALETTE)
        content = (folder / "whole/one.png").read_bytes()
        start = content.index(b"PLTE")
        short = b"PLTE" + content[start + 4 : start + 4 + 3 * colors]
        chunk = len(short[4:]).to_bytes(4, "big") + short + zlib.crc32(short).to_bytes(4, "big")
        (folder / "whole/one.png").write_bytes(content[: start - 4] + chunk + content[start + 4 + 768 + 4 :])
        assert np.array_equal(read_label(folder / "whole/one.png"), labels)
        tiles.main(["cut", f"{folder}/whole", "--out", f"{folder}/cut", "--tile", "16", "--overlap", "4"])
        assert np.array_equal(read_label(folder / "cut/one/000000-000000.png"), labels[:16, :16])
        tiles.main(["join", f"{folder}/cut", "--cut", f"{folder}/cut", "--out", f"{folder}/joined"])
        assert np.array_equal(read_label(folder / "joined/one.png"), labels)


def test_a_label_of_one_bit_stays_one(tmp_path: Path) -> None:
    """So that `prepare` refuses it; in RGB its class 1 would be 255."""
    (tmp_path / "whole").mkdir()
    Image.new("1", (20, 20), 1).save(tmp_path / "whole/one.png")
    tiles.main(["cut", f"{tmp_path}/whole", "--out", f"{tmp_path}/cut", "--tile", "16", "--overlap", "4"])
    with pytest.raises(SesamError, match="has mode 1"):
        read_label(tmp_path / "cut/one/000000-000000.png")


def test_an_edge_is_not_what_counts(tmp_path: Path) -> None:
    """Tiles that are wrong at their edges, but not those of the image."""
    labels = np.zeros((50, 60), np.uint8)
    labels[10:30, 5:55] = 1
    write_label(tmp_path / "whole/one.png", labels, PALETTE)
    tiles.main(["cut", str(tmp_path / "whole"), "--out", str(tmp_path / "cut"), "--tile", "32", "--overlap", "8"])
    for path in (tmp_path / "cut/one").iterdir():
        part = read_label(path)
        top, left = map(int, path.stem.split("-"))
        wrong = np.full_like(part, 2)
        inner = tuple(
            slice(0 if begin == 0 else 4, length if begin + length == whole else length - 4)
            for begin, length, whole in zip((top, left), part.shape, labels.shape, strict=True)
        )
        wrong[inner] = part[inner]
        write_label(path, wrong, PALETTE)
    tiles.main(["join", str(tmp_path / "cut"), "--cut", str(tmp_path / "cut"), "--out", str(tmp_path / "joined")])
    assert np.array_equal(read_label(tmp_path / "joined/one.png"), labels)


def test_train_and_val_may_share_a_name(tmp_path: Path) -> None:
    """Which of the two it is, the tiles say."""
    sizes = {"train": (50, 60), "val": (60, 50)}
    for split, size in sizes.items():
        label = np.random.default_rng(0).integers(0, 3, size).astype(np.uint8)
        write_label(tmp_path / f"whole/labels/{split}/one.png", label, PALETTE)
    cut = str(tmp_path / "cut")
    tiles.main(["cut", str(tmp_path / "whole"), "--out", cut, "--tile", "32", "--overlap", "8"])
    for split in sizes:
        tiles.main(["join", f"{cut}/labels/{split}", "--cut", cut, "--out", str(tmp_path / split)])
        whole = read_label(tmp_path / f"whole/labels/{split}/one.png")
        assert np.array_equal(read_label(tmp_path / f"{split}/one.png"), whole)


def test_what_cannot_be_cut_or_joined_is_told(tmp_path: Path) -> None:
    write_label(tmp_path / "whole/one.png", np.zeros((50, 60), np.uint8), PALETTE)
    cut = ["cut", str(tmp_path / "whole"), "--out", str(tmp_path / "cut"), "--tile", "32", "--overlap", "8"]
    join = ["join", str(tmp_path / "cut"), "--cut", str(tmp_path / "cut"), "--out", str(tmp_path / "joined")]

    def told(arguments: list[str], message: str) -> None:
        with pytest.raises(SesamError, match=message):
            tiles.main(arguments)

    told([*cut[:-1], "20"], "--overlap must be 2 to half of --tile, 16 pixels")
    told(["cut", str(tmp_path / "none"), *cut[2:]], "none is no folder")
    Image.new("RGB", (4, 4)).save(tmp_path / "whole/one.jpg")
    told(cut, "two images are called one")
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "whole/one.jpg").unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "whole/two.jpg", exif=turned)
    told(cut, "two.jpg is stored rotated or mirrored")
    assert not (tmp_path / "cut").exists()
    Image.new("CMYK", (4, 4)).save(tmp_path / "whole/two.jpg")
    tiles.main(cut)
    told(cut, "cut is there already")
    told(["join", str(tmp_path / "whole"), *join[2:]], "holds no tiles, NAME/ROW-COLUMN.png")
    middle, last = (tmp_path / f"cut/one/{name}.png" for name in ("000018-000014", "000018-000028"))
    write_label(middle, np.zeros((5, 5), np.uint8), PALETTE)
    told(join, r"000018-000014\.png is 5x5; expected are 32x32 pixels of one channel")
    middle.unlink()
    told(join, r"000018-000014\.png is missing")
    last.rename(middle)
    told(join, r"000018-000028\.png is missing")
    write_json(tmp_path / "cut/tiles.json", {"tile": 32, "overlap": 8, "sizes": {"three": [1, 1]}})
    told(join, "has no image one. Name the folder that it was cut into")
    write_json(tmp_path / "cut/tiles.json", {"tile": 32, "overlap": 8, "sizes": {"a/one": [1, 1], "b/one": [2, 2]}})
    told(join, "has images one of several sizes; the tiles in .*cut/one fit none of them")
    write_json(tmp_path / "cut/tiles.json", {"tile": 64, "overlap": 8, "sizes": {"a/one": [1, 1], "b/one": [2, 2]}})
    for path in (tmp_path / "cut/one").iterdir():
        path.unlink()
    write_label(tmp_path / "cut/one/000000-000000.png", np.zeros((2, 2), np.uint8), PALETTE)
    told(join, "fit several of them. Make the labels again, or rename one and cut again")
    (tmp_path / "cut/tiles.json").write_text("[]")
    told(join, r"tiles\.json is not what `split_image` wrote")
    assert not (tmp_path / "joined/one.png").exists()


def test_tiles_are_a_data_set(folder_dataset: Path) -> None:  # noqa: F811
    """Images, fine labels and what annotators drew, cut; prepared and read as of images of their own."""
    whole = folder_dataset / "mine"
    weak = folder_dataset / "weak"
    for path in sorted((whole / "labels/train").iterdir()):
        write_label(weak / path.name, np.where(read_label(path) == 0, 0, 255), PALETTE)
    sizes = {path.stem: read_image(path).shape[:2] for path in (whole / "images/train").iterdir()}
    for name in ("mine", "weak"):
        out = f"{folder_dataset}/cut/{name}"
        tiles.main(["cut", f"{folder_dataset}/{name}", "--out", out, "--tile", "16", "--overlap", "4"])
    edit_params(folder_dataset, dataset__root="cut/mine", weak_labels__source="cut/weak")
    for stage in ("prepare", "weak_labels"):
        done = run(f"stages.{stage}", cwd=folder_dataset)
        assert done.returncode == 0, done.stderr
    items = Dataset.load(folder_dataset / "data/dataset").train
    assert len(items) > len(sizes) and {item.id.split("/")[0] for item in items} == sizes.keys()
    cut = str(folder_dataset / "cut/weak")
    tiles.main(["join", str(folder_dataset / "data/weak"), "--cut", cut, "--out", str(folder_dataset / "joined")])
    for name in sizes:
        assert np.array_equal(read_label(folder_dataset / f"joined/{name}.png"), read_label(weak / f"{name}.png"))
