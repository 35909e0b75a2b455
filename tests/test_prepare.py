"""What a data set may have wrong, and what prepare says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import edit_params, run
from PIL import Image

from stages.common.dataset import Dataset
from stages.common.labels import read_label
from stages.common.scenes import CLASSES, PALETTE


def test_a_folder_becomes_class_ids_and_a_manifest(folder_dataset: Path) -> None:
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 0, done.stderr
    dataset = Dataset.load(folder_dataset / "data/dataset")
    assert [item.id for item in dataset.train] == ["0", "1", "2"]
    assert (dataset.train[0].height, dataset.train[0].width) == (40, 60)
    label = read_label(folder_dataset / "data/fine/train/0.png")
    assert set(np.unique(label[:4])) == {255}
    assert (label[4:, :25] == 0).all() and (label[4:, 25:] == 1).all()
    with Image.open(folder_dataset / "data/fine/train/0.png") as image:
        assert image.mode == "P"


def _delete(path: Path) -> None:
    path.unlink()


def _resize(path: Path) -> None:
    Image.fromarray(np.zeros((20, 60), np.uint8)).save(path)


def _strange_class(path: Path) -> None:
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(path)


def _garbage(path: Path) -> None:
    path.write_bytes(b"no picture")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _colour(path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "which", "said"),
    [
        (_delete, "labels/train/1.png", "Add the label"),
        (_resize, "labels/train/1.png", "60x20 pixels"),
        (_strange_class, "labels/val/0.png", "class ids [7]; expected 0 to 1"),
        (_garbage, "labels/train/2.png", "Replace the file"),
        (_truncate, "images/train/0.png", "Replace the file"),
        (_colour, "labels/train/0.png", "one 8-bit channel"),
    ],
)
def test_a_fault_is_named_and_nothing_is_written(folder_dataset: Path, spoil, which: str, said: str) -> None:
    spoil(folder_dataset / "mine" / which)
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1
    assert said in done.stderr and f"mine/{which}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder_dataset.glob("data/**/*.png")) and not list(folder_dataset.glob("data/**/*.json"))


def test_an_empty_split(folder_dataset: Path) -> None:
    (folder_dataset / "mine/images/val/0.png").unlink()
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "mine/images/val holds no image" in done.stderr
    assert "Traceback" not in done.stderr and not (folder_dataset / "data/fine").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling__nun_points": 3}, "sampling.nun_points: unknown key"),
        ({"sampling__num_points": 0}, "sampling.num_points"),
        ({"selection__tau_weak": "high"}, "selection.tau_weak"),
        ({"teacher__scale": [0, 1]}, "teacher.scale.0"),
        ({"dataset__ignore": [1]}, "ignore holds [1], which are class ids"),
        ({"rounds": {"teacher": {"teacher": "models/teacher"}}}, "rounds.teacher"),
        ({"dataset__palette": [[0, 0, 0]]}, "1 palette colours for 2 classes"),
    ],
)
def test_wrong_params_are_named(folder_dataset: Path, change: dict, said: str) -> None:
    edit_params(folder_dataset, **change)
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert not (folder_dataset / "data").exists()


def test_params_that_are_no_yaml(folder_dataset: Path) -> None:
    (folder_dataset / "params.yaml").write_text("seed: [")
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "params.yaml" in done.stderr and "Traceback" not in done.stderr


def test_every_preset_is_valid() -> None:
    from conftest import ROOT

    from stages.common.params import load_params

    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert {path.stem for path in presets} >= {"demo", "camvid", "folder"}
    for path in [*presets, ROOT / "params.yaml"]:
        params = load_params(path)
        assert params.model_dump(mode="json", exclude_unset=True) == params.model_dump(mode="json"), "a key is left out"


def test_the_demo_names_the_classes_that_are_drawn(params) -> None:
    assert tuple(params.dataset.classes) == CLASSES
    assert tuple(params.dataset.palette) == PALETTE
