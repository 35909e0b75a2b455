"""Issues of a data set and of params.yaml, and how they are reported."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, edit_params, run, sh
from PIL import Image, ImageColor
from scipy.ndimage import maximum_filter, minimum_filter

from sesam.artifacts.image_io import read_label
from sesam.artifacts.manifest import Manifest
from sesam.datasets.class_statistics import class_table, count_classes, suspicious_classes
from sesam.demo.classes import CLASSES, PALETTE
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.labels import count_values
from sesam.params import FINE_TRAIN_LABELS, load_params
from sesam.presets import load_preset, render_params
from stages import check_inputs, prepare


@pytest.fixture(autouse=True)
def _workspace(folder_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_dataset)
    edit_params(folder_dataset, runtime__num_workers=1)


def save_label(path: str, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(f"mine/{path}.png")


def prepare_error() -> str:
    with pytest.raises(SesamError) as problem:
        prepare.main()
    return str(problem.value)


def test_a_folder_becomes_class_ids_and_a_manifest() -> None:
    prepare.main()
    record = Manifest.load().train[0]
    assert (record.id, record.height, record.width) == ("0", 40, 60)
    label = read_label(Path("data/fine/train/0.png"))
    assert (label[:4] == 255).all() and (label[4:, :25] == 0).all() and (label[4:, 25:] == 1).all()
    with Image.open("data/fine/train/0.png") as image:
        assert image.mode == "P"


def test_an_issue_ends_with_a_message_and_nothing_is_written(folder_dataset: Path) -> None:
    Path("mine/labels/train/1.png").unlink()
    save_label("labels/val/0", np.full((40, 60), 7))
    done = run("stages.prepare", cwd=folder_dataset)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: mine (dataset.root) has 2 issues; nothing was written." in done.stderr
    assert "mine/labels/train/1.png" in done.stderr and "mine/labels/val/0.png: 7" in done.stderr
    assert not list(Path().glob("data/**/*.png")) and not list(Path().glob("data/**/*.json"))


def test_labels_with_an_ending_of_their_own() -> None:
    for path in list(Path("mine/labels/train").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    assert "all names end in _mask, the images' names do not" in prepare_error()


def test_no_validation() -> None:
    edit_params(Path(), dataset__val_splits=[])
    shutil.rmtree("mine/images/val")
    prepare.main()
    assert Manifest.load().val == () and len(Manifest.load().train) == 3


def test_an_empty_split() -> None:
    Path("mine/images/val/0.png").unlink()
    assert "mine/images/val has no file" in prepare_error() and not Path("data/fine").exists()


PUBLISHED, IGNORE = ("cityscapes", "ade20k", "voc", "camvid"), {"dataset__ignore_values": [255]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling__nun_points": 3}, "sampling.nun_points: unknown key"),
        ({"sampling__num_points": 0}, "sampling.num_points"),
        ({"selection__min_coverage": "high"}, "selection.min_coverage"),
        ({"schedule__scale_range": [0, 1]}, "schedule.scale_range.0"),
        ({"dataset__ignore_values": [1]}, "ignore_values has [1], which are class ids"),
        ({"demo": {"demo; touch ran": {"train": 1, "val": 1, "seed": 1}}}, "demo.demo; touch ran"),
        ({"rounds": {"teacher": {"teacher": "baseline", "fill_confident": True}}}, "rounds.teacher"),
        ({"dataset__palette": ["#000000"]}, "1 palette colors for 2 classes"),
        ({"sampling__strategy": "confident"}, "rounds.r1.teacher is none"),
        ({"rounds__r1__fill_confident": True}, "rounds.r1.fill_confident must be false"),
        ({"rounds": {"r2": {"teacher": "r1"}}}, "rounds.r2.teacher is r1, which is not an earlier round"),
        ({"weak_labels__kind": "fine", "weak_labels__path": "scribbles"}, "path must be data/fine/train"),
        ({"rounds": {"r2": {"teacher": "r2"}}}, "rounds.r2.teacher is r2, which is not an earlier round"),
        ({"rounds__r1__teacher": "r2"}, "rounds.r1.teacher is r2, which is not an earlier round"),
        ({"schedule__scale_range": [2, 1]}, "schedule.scale_range: the lower end comes first: [1, 2]"),
        ({"student__scale_range": [2, 1]}, "student.scale_range: the lower end comes first: [1, 2]"),
        ({"student__loss_weights": {"weak": 0.0, "fine": 0.0, "sam": 0.0, "confident": 0.0}}, "all loss weights are 0"),
        ({"weak_labels__path": "./data/weak/"}, "weak_labels.path: weak labels are written to data/weak"),
        ({"weak_labels__path": "data/weak/r1"}, "weak_labels.path: weak labels are written to data/weak"),
        *(({"dataset__format": name, **IGNORE}, "ignore_values; set them to null") for name in PUBLISHED),
        ({"dataset__classes": ["left", "left"]}, "two classes have the same name"),
        ({"dataset__classes": None}, "format folder needs classes"),
        ({"dataset__subset": 0.0}, "dataset.subset"),
        ({"dataset__format": "coco"}, "dataset.format"),
        ({"dataset__subset": []}, "dataset.subset"),
        ({"schedule__lr": 1e30}, "schedule.lr"),
        ({"schedule__scale_range": [1, float("inf")]}, "schedule.scale_range.1"),
        ({"student__loss_weights__sam": float("nan")}, "student.loss_weights.sam"),
        ({"seed": 2**64}, "seed"),
        ({"network__base_channels": None}, "base_channels must be a number"),
        ({"network__backbone": "tf_efficientnet_lite0"}, "base_channels must be null"),
        ({"weak_labels__scribble__thickness": 40_000}, "weak_labels.scribble.thickness"),
        ({"schedule__crop_size": [192, 10**6]}, "schedule.crop_size.1"),
    ],
)
def test_wrong_params_are_reported_by_key(change: dict, message: str) -> None:
    edit_params(Path(), **change)
    with pytest.raises(SesamError, match=re.escape(message)):
        load_params()


@pytest.mark.parametrize("source", ["data/fine/train/", "./data/fine/train", "data/fine/../fine/train"])
def test_equal_paths_of_weak_labels_are_equal(source: str) -> None:
    edit_params(Path(), weak_labels__path=source, weak_labels__kind="fine")
    assert load_params().weak_labels.path == FINE_TRAIN_LABELS


@pytest.mark.parametrize("key", ["dataset.root", "weak_labels.path"])
def test_a_path_that_does_not_exist_is_reported_with_its_key(key: str) -> None:
    shutil.copytree("mine", "other")
    edit_params(Path(), **{key.replace(".", "__"): "other"})
    check_inputs.main()
    Path("other").rename("moved")
    with pytest.raises(SesamError, match=f"^params.yaml: {key}: other does not exist. Create or link it, or correct"):
        check_inputs.main()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages["check_inputs"]["always_changed"], "DVC would skip it"
    assert all("data/checked.txt" in stages[name]["deps"] for name in ("prepare", "weak_labels"))


def test_a_git_repository_without_commit_is_reported() -> None:
    """DVCLive would end a training, hours later, with a traceback."""
    sh("git", "init", "-q", cwd=Path())
    with pytest.raises(SesamError, match=r"^This git repository has no commit.*`git commit` first"):
        check_inputs.main()
    sh("git", "commit", "-q", "--allow-empty", "-m", "first", cwd=Path())
    check_inputs.main()


def test_outputs_of_other_stages_need_not_exist_yet() -> None:
    edit_params(Path(), dataset__root="./data/raw/demo/", demo={"demo": {"train": 1, "val": 1, "seed": 1}})
    check_inputs.main()


def test_classes_are_counted() -> None:
    ids = np.array([[0, 0, 1], [0, 255, 1], [2, 2, 1]], np.uint8)
    pixels, border, neighbors = count_classes(ids, 4)
    assert pixels.tolist() == [3, 3, 2, 0]
    assert border.tolist() == [2, 2, 2, 0]  # 0|1 above, 0|2 on the left, 2|1 below
    assert neighbors.tolist() == [2, 2, 2, 0]
    table = class_table(np.stack([count_classes(ids, 4), count_classes(ids[:1], 4)]), ["a", "b", "c", "long name"])
    assert table[0] == "a           45.455% of the pixels, in 2 of 2 images"
    assert table[3] == "long name    0.000% of the pixels, in 0 of 2 images"


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (64, 80)])
@pytest.mark.parametrize("largest", [0, 1, 255])
def test_values_are_counted(shape: tuple[int, int], largest: int) -> None:
    values = np.random.default_rng(largest).integers(0, largest, shape, np.uint8, endpoint=True)
    for label in (values, values[:, ::-1], np.sort(values, axis=None).reshape(shape)):
        assert np.array_equal(count_values(label), np.bincount(label.ravel(), minlength=256))


def test_an_ignored_value_read_as_a_class_is_suspicious() -> None:
    """A drawn street whose outlines are a class, as where the value of void is not in dataset.ignore_values."""
    names = [*CLASSES, "dog"]
    right, wrong = [], []
    for seed in range(6):
        ids = draw_scene(seed).labels
        right.append(count_classes(ids, len(names)))
        outline = maximum_filter(ids, 5) != minimum_filter(ids, 5)
        wrong.append(count_classes(np.where(outline, len(CLASSES), ids).astype(np.uint8), len(names)))
    assert suspicious_classes(np.stack(right), names) == []
    (line,) = suspicious_classes(np.stack(wrong), names)
    assert line.startswith("class dog thinly surrounds nearly every other class")
    alone = count_classes(np.zeros((200, 200), np.uint8), 2)
    few = alone + np.array([[0, 1], [0, 0], [0, 0]])
    assert suspicious_classes(np.stack([alone]), ["a", "b"]) == ["class a has 100.000% of the pixels."]
    assert len(suspicious_classes(np.stack([few]), ["a", "b"])) == 2


def test_shares_and_known_values_are_printed(capsys) -> None:
    prepare.main()
    text = capsys.readouterr().out
    assert "  train: check these shares; a mis-mapped label id shows up here\n    left " in text
    assert "    right   58.333% of the pixels, in 3 of 3 images\n" in text
    save_label("labels/train/0", np.full((40, 60), 7))
    assert "Known values: 0 to 1 for classes, 9, 255 for no class" in prepare_error()


def test_images_with_unsupported_names_or_sizes_are_reported() -> None:
    """A screenshot's narrow space, a name that is not UTF-8, a side that is too long, an image too narrow for SAM."""
    for kind in ("images", "labels"):
        folder = Path(f"mine/{kind}/train")
        shutil.copy(folder / "0.png", folder / "shot 9.41\u202fPM.png")
        (folder / "1.png").rename(folder / "na\udceftive.png")
        save_label(f"{kind}/train/2", np.zeros((1100, 66_000)))
        save_label(f"{kind}/train/0", np.zeros((3, 200)))
    message = prepare_error()
    assert "images with an unsupported name or size: 3" in message
    for name in ("\\u202fPM.png', 60x40", "na\\udceftive.png', 60x40", "2.png', 66000x1100"):
        assert name in message
    assert "images more than 64 times as long as wide: 1" in message and "0.png has 200x3 pixels" in message


BOMB = "a: &a [x, x]\n" + "".join(
    f"{k}: &{k} [*{p}, *{p}, *{p}]\n" for p, k in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [", "params.yaml"),
        ("seed: 0\nseed: 1\n", "duplicate key seed"),
        ("weak:\n  kind: point\n  kind: fine\n", "duplicate key kind"),
        (BOMB, "aliases"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("seed: 0 # " + "x" * 300_000, "300010 bytes"),
        ("seed: !!python/object/apply:os.system [touch ran]", "params.yaml"),
        ("? [a]\n: 1\n", "params.yaml"),
        ("\0", "params.yaml"),
        ("- 1", "not a mapping"),
    ],
)
def test_invalid_yaml_is_reported(text: str, message: str) -> None:
    Path("params.yaml").write_text(text)
    with pytest.raises(SesamError, match=re.escape(message)):
        load_params()
    assert not Path("ran").exists()


def test_a_missing_group_is_reported() -> None:
    edited = yaml.safe_load(Path("params.yaml").read_text())
    for group in ("baseline", "sam"):
        Path("params.yaml").write_text(yaml.safe_dump({key: edited[key] for key in edited if key != group}))
        with pytest.raises(SesamError, match=rf"lacks .*\n.*{group}.*missing; the default is"):
            load_params()


def test_every_preset_is_short_and_its_params_have_every_key() -> None:
    presets = sorted((ROOT / "presets").glob("*.yaml"))
    assert {path.stem for path in presets} >= {"demo", "folder", "cityscapes", "ade20k", "voc", "camvid", "idd"}
    for path in presets:
        assert len(path.read_text().splitlines()) <= 40
        Path("params.yaml").write_text(render_params(load_preset(path)))
        assert load_params() == load_preset(path)


def test_the_demo_preset_has_the_classes_of_the_scenes(params) -> None:
    assert tuple(params.dataset.classes) == CLASSES
    assert tuple(ImageColor.getrgb(color) for color in params.dataset.palette) == PALETTE
