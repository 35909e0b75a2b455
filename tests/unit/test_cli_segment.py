"""A folder of images labeled with a trained network, in tiles where they are large."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from dataset_factories import THREE
from hypothesis import given
from hypothesis import strategies as st
from mmseg.registry import MODELS
from PIL import Image

from sesam.artifacts.label_png import ORIENTATION, read_label, write_label
from sesam.cli import segment
from sesam.cli.segment import overlay, predict_tiled
from sesam.errors import SesamError
from sesam.geometry.tiling import tile_slices
from sesam.presets import load_preset
from sesam.segmentation.network import load_network, network_config, predict, save_network

NETWORK = load_preset(ROOT / "presets/demo.yaml").network.model_copy(update={"base_channels": 4, "head_channels": 8})


@given(st.integers(1, 3000), st.integers(4, 600), st.data())
def test_middles_divide_an_axis(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(2, tile // 2))
    found = list(tile_slices(length, tile, overlap))
    assert [k for _, middle, _ in found for k in range(length)[middle]] == list(range(length))
    for where, middle, inside in found:
        assert 0 <= where.start < where.stop <= length and where.stop - where.start <= tile
        assert range(length)[where][inside] == range(length)[middle]
        assert middle.start == 0 or middle.start - where.start >= overlap // 2
        assert middle.stop == length or where.stop - middle.stop >= overlap // 2


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40))
def test_tiles_of_what_sees_no_context_are_the_whole(height: int, width: int, tile: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    assert np.array_equal(predict_tiled(image, lambda part: part[..., 0] % 3, tile, tile // 2), image[..., 0] % 3)


def test_an_overlay_is_half_the_image_and_half_its_color() -> None:
    palette = np.array([(0, 0, 0), (255, 255, 255)] + [(0, 0, 0)] * 254, np.uint8)
    assert overlay(np.full((1, 2, 3), 100, np.uint8), np.array([[0, 1]], np.uint8), palette)[0, :, 0].tolist() == [
        50,
        177,
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    save_network(folder, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    return folder


def test_a_folder_of_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    sizes = {"a.png": (60, 70), "street/b.jpg": (150, 40), "street/deep/c.jpeg": (30, 200)}
    for name, size in sizes.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / "in" / name)
    command = ("in", "--model", str(trained), "--out", "in/out", "--tile", "64", "--overlap", "16")
    segment.main(command)
    for name, size in sizes.items():
        labels = read_label((tmp_path / "in/out/labels" / name).with_suffix(".png"))
        with Image.open((tmp_path / "in/out/overlays" / name).with_suffix(".png")) as picture:
            assert labels.shape == size == picture.size[::-1] and labels.max() < 3
    model, cpu = load_network(trained, torch.device("cpu")), torch.device("cpu")
    image = np.array(Image.open(tmp_path / "in/a.png"))
    expected = predict_tiled(image, lambda part: predict(model, part, cpu)[0], 64, 16)
    assert np.array_equal(read_label(tmp_path / "in/out/labels/a.png"), expected)
    (tmp_path / "in/out/labels/a.png").unlink()
    segment.main(command)
    assert "2 images were labeled already" in capsys.readouterr().out
    assert np.array_equal(read_label(tmp_path / "in/out/labels/a.png"), expected)
    with pytest.raises(SesamError, match="in/out holds labels of another network, or of other tiles"):
        segment.main((*command[:-1], "8"))


def pictures(**sizes: tuple[int, int]) -> None:
    """Images of noise, of these heights and widths, in the folder `in`."""
    Path("in").mkdir(exist_ok=True)
    for name, size in sizes.items():
        pixels = np.random.default_rng(len(list(Path("in").iterdir()))).integers(0, 256, (*size, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(f"in/{name}.png")


@pytest.mark.parametrize("size", [(40, 50), (50, 40)])
def test_a_replaced_image_is_labeled_anew(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Also by one of its size that is older than the label."""
    monkeypatch.chdir(tmp_path)
    command = ("in", "--model", str(trained), "--out", "out")
    pictures(a=(40, 50), b=(40, 50))
    segment.main(command)
    before = {path.name: path.stat().st_mtime_ns for path in Path("out/labels").iterdir()}
    pictures(a=size)
    os.utime("in/a.png", (0, 0))
    segment.main(command)
    after = {path.name: path.stat().st_mtime_ns for path in Path("out/labels").iterdir()}
    assert after["a.png"] > before["a.png"] and after["b.png"] == before["b.png"]
    model, cpu = load_network(trained, torch.device("cpu")), torch.device("cpu")
    expected = predict(model, np.array(Image.open("in/a.png")), cpu)[0]
    assert np.array_equal(read_label(Path("out/labels/a.png")), expected)
    with Image.open("out/overlays/a.png") as picture:
        assert picture.size == size[::-1]


def test_images_that_cannot_be_read_are_told_when_the_others_are_done(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(b=(20, 30), d=(20, 30))
    Path("in/a.png").write_bytes(b"no image")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("in/c.jpg", exif=exif)
    with pytest.raises(SesamError, match=r"2 images failed:\n.*in/a\.png cannot be.*\n.*in/c\.jpg is stored rotated"):
        segment.main(("in", "--model", str(trained), "--out", "out"))
    assert {path.name for path in Path("out/labels").iterdir()} == {"b.png", "d.png"}


def test_labels_of_others_are_not_taken_for_its_own(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(a=(20, 30), b=(20, 30))
    other = np.zeros((20, 30), np.uint8)
    write_label(Path("out/labels/a.png"), other, THREE[1])
    command = ("in", "--model", str(trained), "--out", "out")
    with pytest.raises(SesamError, match=r"out/labels holds labels, and no out/made_by\.json"):
        segment.main(command)
    assert not Path("out/made_by.json").exists() and not Path("out/overlays").exists()
    Path("out/labels/a.png").unlink()
    segment.main(command)
    write_label(Path("out/labels/a.png"), other, THREE[1])  # drawn anew, or from elsewhere
    Path("out/labels/b.png").unlink()
    with pytest.raises(SesamError, match=r"out/labels/a\.png does not say which image"):
        segment.main(command)
    assert np.array_equal(read_label(Path("out/labels/a.png")), other) and Path("out/labels/b.png").exists()


@pytest.mark.parametrize("taken", ["out", "out/labels", "out/overlays"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(a=(20, 30))
    Path(taken).parent.mkdir(exist_ok=True)
    Path(taken).touch()
    with pytest.raises(SesamError, match=f"{taken} is a file.*--out"):
        segment.main(("in", "--model", "none", "--out", "out"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere is no folder"),
        (("empty",), "empty holds no image"),
        (("twice",), "two images are called a"),
        (("one", "--overlap", "900"), "--overlap must be 2 to half of --tile, 512"),
        (("one",), "network.json is missing"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty/a.txt", "twice/a.png", "twice/a.jpg", "one/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(SesamError, match=said):
        segment.main([*arguments, "--model", "none", "--out", "out"])
    assert not (tmp_path / "out").exists()
