"""`sesam segment`: a folder of images labeled with a trained network, in tiles where they are large."""

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

from sesam.artifacts.image_io import ORIENTATION, read_label, write_label
from sesam.cli.main import main
from sesam.errors import SesamError
from sesam.geometry.tiling import stitch_tiles, tile_slices
from sesam.presets import load_preset
from sesam.segmentation.network import load_network, network_config, predict, save_network

NETWORK = load_preset(ROOT / "presets/demo.yaml").network.model_copy(update={"base_channels": 4, "head_channels": 8})
CPU = torch.device("cpu")


@given(st.integers(1, 3000), st.integers(4, 600), st.data())
def test_centers_of_tiles_partition_an_axis(length: int, tile_size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(2, tile_size // 2))
    slices = list(tile_slices(length, tile_size, overlap))
    assert [k for _, center, _ in slices for k in range(length)[center]] == list(range(length))
    for where, center, inside in slices:
        assert 0 <= where.start < where.stop <= length and where.stop - where.start <= tile_size
        assert range(length)[where][inside] == range(length)[center]
        assert center.start == 0 or center.start - where.start >= overlap // 2
        assert center.stop == length or where.stop - center.stop >= overlap // 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    save_network(folder, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    return folder


@pytest.fixture
def command(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """`sesam segment` of the folder `in` to `out`, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return ("segment", "in", "--model", str(trained), "--out", "out")


def write_images(sizes: dict[str, tuple[int, int]]) -> None:
    """Images of noise, of these heights and widths, below the folder `in`."""
    for name, size in sizes.items():
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(list(Path("in").rglob("*")))).integers(0, 256, (*size, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def prediction(trained: Path, image: str, tile_size: int = 1024, overlap: int = 256) -> np.ndarray:
    model, pixels = load_network(trained, CPU), np.array(Image.open(image))
    return stitch_tiles(pixels.shape[:2], tile_size, overlap, lambda where: predict(model, pixels[where], CPU)[0])


def test_segment_labels_a_folder(trained: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"a.png": (60, 70), "street/b.jpg": (150, 40), "street/deep/c.jpeg": (30, 200)}
    write_images(sizes)
    command = (*command[:-1], "in/out", "--tile-size", "64", "--overlap", "16")
    main(command)
    for name, size in sizes.items():
        labels = read_label((Path("in/out/labels") / name).with_suffix(".png"))
        with Image.open((Path("in/out/overlays") / name).with_suffix(".png")) as image:
            assert labels.shape == size == image.size[::-1] and labels.max() < 3
    label = Path("in/out/labels/a.png")
    assert np.array_equal(read_label(label), prediction(trained, "in/a.png", 64, 16))
    before = label.read_bytes()
    label.unlink()
    main(command)
    assert "2 images were labeled already" in capsys.readouterr().out and label.read_bytes() == before
    for other in ((*command[:-1], "8"), (*command, "--flip")):
        with pytest.raises(SesamError, match="in/out has labels of another network, tiles or evaluation"):
            main(other)
    for path in Path("in/out/labels").rglob("*.png"):
        path.unlink()
    main((*command, "--flip"))  # as after an error before the first label
    with pytest.raises(SesamError, match=r"sesam segment: .*mode slide needs crop_size and stride"):
        main((*command, "--mode", "slide", "--stride", "16", "16"))


@pytest.mark.parametrize("size", [(40, 50), (50, 40)])
def test_replaced_images_are_labeled_again(trained: Path, command: tuple[str, ...], size: tuple[int, int]) -> None:
    write_images({"a.png": (40, 50), "b.png": (40, 50)})
    main(command)
    before = {path.name: path.stat().st_mtime_ns for path in Path("out/labels").iterdir()}
    write_images({"a.png": size})
    os.utime("in/a.png", (0, 0))
    main(command)
    after = {path.name: path.stat().st_mtime_ns for path in Path("out/labels").iterdir()}
    assert after["a.png"] > before["a.png"] and after["b.png"] == before["b.png"]
    assert np.array_equal(read_label(Path("out/labels/a.png")), prediction(trained, "in/a.png"))
    with Image.open("out/overlays/a.png") as image:
        assert image.size == size[::-1]


def test_unreadable_images_are_reported_after_the_others_are_labeled(command: tuple[str, ...]) -> None:
    write_images({"b.png": (20, 30), "d.png": (20, 30)})
    Path("in/a.png").write_bytes(b"no image")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("in/c.jpg", exif=exif)
    with pytest.raises(SesamError, match=r"2 images failed:\n.*in/a\.png is not an image.*\n.*in/c\.jpg is stored"):
        main(command)
    assert {path.name for path in Path("out/labels").iterdir()} == {"b.png", "d.png"}


def test_labels_of_unknown_origin_are_kept(command: tuple[str, ...]) -> None:
    write_images({"a.png": (20, 30), "b.png": (20, 30)})
    label, labels = Path("out/labels/a.png"), np.zeros((20, 30), np.uint8)
    write_label(label, labels, THREE[1])
    with pytest.raises(SesamError, match=r"out/labels has labels of unknown origin: out/made_by\.json does not exist"):
        main(command)
    assert not Path("out/made_by.json").exists() and not Path("out/overlays").exists()
    label.unlink()
    main(command)
    write_label(label, labels, THREE[1])
    Path("out/labels/b.png").unlink()
    with pytest.raises(SesamError, match=r"out/labels/a\.png does not name its image"):
        main(command)
    assert np.array_equal(read_label(label), labels) and Path("out/labels/b.png").exists()


@pytest.mark.parametrize("taken", ["out", "out/labels", "out/overlays"])
def test_a_file_in_place_of_an_output_folder_is_reported(command: tuple[str, ...], taken: str) -> None:
    write_images({"a.png": (20, 30)})
    Path(taken).parent.mkdir(exist_ok=True)
    Path(taken).touch()
    with pytest.raises(SesamError, match=f"{taken} is a file.*--out"):
        main(command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere is"),
        (("empty",), "empty h.+ no image"),
        (("twice",), "two images are called a"),
        (("one", "--overlap", "900"), "--overlap must be 2 to half of --tile-size, 512"),
        (("one", "--model", "none"), "network.json is missing"),
    ],
)
def test_wrong_arguments_are_reported(command: tuple[str, ...], arguments: tuple[str, ...], message: str) -> None:
    for name in ("empty/a.txt", "twice/a.png", "twice/a.jpg", "one/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    with pytest.raises(SesamError, match=message):
        main(["segment", *command[2:], *arguments])
    assert not Path("out").exists()
