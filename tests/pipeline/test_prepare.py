"""What a data set may have wrong, and what prepare says of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, edit_params, run
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from sesam.artifacts.label_png import read_label
from sesam.artifacts.manifest import Dataset
from sesam.datasets.checks import parse_color
from sesam.datasets.class_statistics import class_table, count_classes, suspicious_classes
from sesam.demo.classes import CLASSES, PALETTE
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.params import load_params
from stages import prepare


def test_a_folder_becomes_class_ids_and_a_manifest(folder_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_dataset)
    edit_params(folder_dataset, runtime__num_workers=1)
    prepare.main()
    dataset = Dataset.load(folder_dataset / "data/dataset")
    assert [item.id for item in dataset.train] == ["0", "1", "2"]
    assert (dataset.train[0].height, dataset.train[0].width) == (40, 60)
    label = read_label(folder_dataset / "data/fine/train/0.png")
    assert set(np.unique(label[:4])) == {255}
    assert (label[4:, :25] == 0).all() and (label[4:, 25:] == 1).all()
    with Image.open(folder_dataset / "data/fine/train/0.png") as image:
        assert image.mode == "P"


def test_a_fault_ends_with_a_message_and_nothing_is_written(folder_dataset: Path) -> None:
    (folder_dataset / "mine/labels/train/1.png").unlink()
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(folder_dataset / "mine/labels/val/0.png")
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: mine (dataset.root) has 2 faults; nothing was written." in done.stderr
    assert "mine/labels/train/1.png" in done.stderr and "mine/labels/val/0.png: 7" in done.stderr
    assert not list(folder_dataset.glob("data/**/*.png")) and not list(folder_dataset.glob("data/**/*.json"))


def test_an_empty_split(folder_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder_dataset / "mine/images/val/0.png").unlink()
    monkeypatch.chdir(folder_dataset)
    with pytest.raises(SesamError, match="mine/images/val holds no file"):
        prepare.main()
    assert not Path("data/fine").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling__nun_points": 3}, "sampling.nun_points: unknown key"),
        ({"sampling__num_points": 0}, "sampling.num_points"),
        ({"selection__tau_weak": "high"}, "selection.tau_weak"),
        ({"schedule__scale_range": [0, 1]}, "schedule.scale_range.0"),
        ({"dataset__ignore_values": [1]}, "ignore holds [1], which are class ids"),
        ({"draw": {"demo; touch ran": {"train": 1, "val": 1, "seed": 1}}}, "draw.demo; touch ran"),
        ({"rounds": {"teacher": {"teacher": "teacher", "fill_confident": True}}}, "rounds.teacher"),
        ({"dataset__palette": ["#000000"]}, "1 palette colors for 2 classes"),
        ({"sampling__strategy": "confident"}, "rounds.r1.teacher is data/weak"),
        ({"rounds__r1__fill_confident": True}, "rounds.r1.fill_confident is true"),
        ({"rounds": {"r2": {"teacher": "r1", "fill_confident": False}}}, "the student of r1, which is no round"),
        (
            {"weak_labels__kind": "fine", "weak_labels__source": "scribbles"},
            "weak_labels.source must be data/fine/train",
        ),
        ({"dataset__classes": ["left", "left"]}, "two classes have one name"),
        ({"dataset__classes": None}, "a folder needs classes"),
        ({"dataset__subset": 0.0}, "dataset.subset"),
        ({"dataset__format": "coco"}, "dataset.format"),
        ({"dataset__subset": []}, "dataset.subset"),
        ({"schedule__lr": 1e30}, "schedule.lr"),
        ({"schedule__scale_range": [1, float("inf")]}, "schedule.scale_range.1"),
        ({"student__loss__sam": float("nan")}, "student.loss_weights.sam"),
        ({"seed": 2**64}, "seed"),
        ({"network__base_channels": 1}, "network.base_channels"),
        ({"weak__scribble__thickness": 40_000}, "weak_labels.scribble.thickness"),
        ({"schedule__crop_size": [192, 10**6]}, "schedule.crop_size.1"),
    ],
)
def test_wrong_params_are_named(folder_dataset: Path, change: dict, said: str) -> None:
    edit_params(folder_dataset, **change)
    with pytest.raises(SesamError) as problem:
        load_params(folder_dataset / "params.yaml")
    assert said in str(problem.value)


def test_params_that_are_no_yaml(folder_dataset: Path) -> None:
    (folder_dataset / "params.yaml").write_text("seed: [")
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "params.yaml" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["dataset.root", "weak_labels.source"])
def test_a_path_that_is_not_there_is_named_with_its_key(folder_dataset: Path, key: str) -> None:
    done = run("stages.check_paths", cwd=folder_dataset)
    assert done.returncode == 0, done.stderr
    edit_params(folder_dataset, **{key.replace(".", "__"): "data/raw/nothing"})
    done = run("stages.check_paths", cwd=folder_dataset)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: params.yaml: {key} is data/raw/nothing, which is not there")


def test_classes_are_counted() -> None:
    ids = np.array([[0, 0, 1], [0, 255, 1], [2, 2, 1]], np.uint8)
    pixels, border, neighbors = count_classes(ids, 4)
    assert pixels.tolist() == [3, 3, 2, 0]
    assert border.tolist() == [2, 2, 2, 0]  # 0|1 above, 0|2 on the left, 2|1 below
    assert neighbors.tolist() == [2, 2, 2, 0]
    table = class_table(np.stack([count_classes(ids, 4), count_classes(ids[:1], 4)]), ["a", "b", "c", "long name"])
    assert table[0] == "a           45.455% of the pixels, in 2 of 2 images"
    assert table[3] == "long name    0.000% of the pixels, in 0 of 2 images"


def test_no_class_read_as_a_class_is_told() -> None:
    """A drawn street whose outlines are a class of their own, as where the value of void was not in dataset.ignore_values."""
    names = [*CLASSES, "dog"]
    right, wrong = [], []
    for seed in range(6):
        ids = draw_scene(seed).labels
        right.append(count_classes(ids, len(names)))
        outline = maximum_filter(ids, 5) != minimum_filter(ids, 5)
        wrong.append(count_classes(np.where(outline, len(CLASSES), ids).astype(np.uint8), len(names)))
    assert suspicious_classes(np.stack(right), names) == []
    (line,) = suspicious_classes(np.stack(wrong), names)
    assert line.startswith("class dog lies thinly around nearly every other class")
    alone = count_classes(np.zeros((200, 200), np.uint8), 2)
    few = alone + np.array([[0, 1], [0, 0], [0, 0]])
    assert suspicious_classes(np.stack([alone]), ["a", "b"]) == ["class a has 100.000% of the pixels."]
    assert len(suspicious_classes(np.stack([few]), ["a", "b"])) == 2


def test_it_tells_shares_and_allowed_values(folder_dataset: Path) -> None:
    done = run("stages.prepare", cwd=folder_dataset)
    assert "    right   58.333% of the pixels, in 3 of 3 images\n" in done.stdout
    label = folder_dataset / "mine/labels/train/0.png"
    Image.fromarray(np.full((40, 60), 7, np.uint8)).save(label)
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "Values with a meaning: 0 to 1 for classes, 9, 255 for no class." in done.stderr


def test_what_the_manifest_would_refuse_is_told_with_the_photograph(folder_dataset: Path) -> None:
    """A screenshot's narrow space, a name that is no UTF-8, and a side that is too long."""
    images, labels = (folder_dataset / f"mine/{kind}/train" for kind in ("images", "labels"))
    for folder in (images, labels):
        (folder / "0.png").rename(folder / "shot 9.41\u202fPM.png")
        (folder / "1.png").rename(folder / "na\udceftive.png")
    Image.fromarray(np.zeros((1100, 66_000), np.uint8)).save(images / "2.png")
    Image.fromarray(np.zeros((1100, 66_000), np.uint8)).save(labels / "2.png")
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "3 images have a name or a size that is not taken" in done.stderr
    for said in ("\\u202fPM.png', 60x40", "na\\udceftive.png', 60x40", "2.png', 66000x1100"):
        assert said in done.stderr


def test_an_image_too_narrow_for_sam_is_told(folder_dataset: Path) -> None:
    for kind in ("images", "labels"):
        Image.fromarray(np.zeros((3, 200), np.uint8)).save(folder_dataset / f"mine/{kind}/train/1.png")
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1
    assert "1 image is more than 64 times as long as wide" in done.stderr and "1.png has 200x3 pixels" in done.stderr


BOMB = "a: &a [x, x]\n" + "".join(
    f"{k}: &{k} [*{p}, *{p}, *{p}]\n" for p, k in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 0\nseed: 1\n", "duplicate key seed"),
        ("weak:\n  kind: point\n  kind: fine\n", "duplicate key kind"),
        (BOMB, "aliases"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("seed: 0 # " + "x" * 1_000_000, "1000010 bytes"),
        ("seed: !!python/object/apply:os.system [touch ran]", "params.yaml"),
        ("? [a]\n: 1\n", "params.yaml"),
        ("\0", "params.yaml"),
        ("- 1", "not a mapping"),
    ],
)
def test_yaml_that_nobody_means(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SesamError, match=re.escape(said)):
        load_params(tmp_path / "params.yaml")
    assert not Path("ran").exists()


def test_every_preset_is_valid() -> None:
    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert {path.stem for path in presets} >= {"demo", "folder", "cityscapes", "ade20k", "voc", "camvid", "idd"}
    for path in presets:
        params = load_params(path)
        assert params.model_dump(mode="json", exclude_unset=True) == params.model_dump(mode="json"), "a key is left out"


def test_the_demo_names_the_classes_that_are_drawn(params) -> None:
    assert tuple(params.dataset.classes) == CLASSES
    assert tuple(parse_color(color) for color in params.dataset.palette) == PALETTE
