"""The DAG: what reruns and what does not, sharing through a remote, and one run from end to end.

It runs on scenes in Cityscapes' layout: train with fine and coarse labels, train_extra with coarse ones alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, checked_out, edit_params, sh, write_params
from dataset_factories import cityscapes_image
from PIL import Image

from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.label_png import read_label
from sesam.cli import explain
from sesam.demo.classes import CLASSES
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.presets import load_preset
from sesam.weak import weak_label


def would_run(workspace: Path) -> set[str]:
    """The stages that `dvc repro` would run."""
    said = sh("dvc", "repro", "--dry", cwd=workspace)
    return {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}


TRAIN = ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "augsburg_000000_000000"]
VAL = ["frankfurt_000000_000294", "lindau_000000_000019"]
PREDICTED = ("labels", "confidence")
LABEL_IDS = [7, 8, 11, 21, 23, 17, 20, 24, 26]  # Cityscapes' of the drawn classes, in their order


def draw_cityscapes(root: Path) -> None:
    """Drawn scenes as Cityscapes; the last training image belongs to train_extra."""
    weak = load_preset(ROOT / "presets/demo.yaml").weak_labels.model_copy(update={"kind": "coarse"})
    ids = np.zeros(256, np.uint8)
    ids[: len(CLASSES)] = LABEL_IDS
    for number, name in enumerate(TRAIN + VAL):
        scene = draw_scene((5, number))
        split = "val" if name in VAL else "train_extra" if name == TRAIN[-1] else "train"
        fine = None if split == "train_extra" else ids[scene.labels]
        cityscapes_image(root, split, name, scene.image, fine, ids[weak_label(scene.labels, weak)])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with tiny params in which `dvc repro` has run, and been committed."""
    folder = checked_out(tmp_path_factory.mktemp("dag") / "sesam")
    draw_cityscapes(folder / "data/raw/cityscapes")
    small = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    write_params(folder, "cityscapes")
    edit_params(
        folder,
        **{group: small[group] for group in ("network", "teacher", "student", "components", "sam", "runtime")},
        draw={"demo": {"train": 2, "val": 1, "seed": 5}},
        dataset__train=["train", "train_extra"],
        weak_labels__kind="coarse",
        weak_labels__source="data/raw/cityscapes/gtCoarse",
        schedule__max_iters=4,
        schedule__batch_size=2,
        teacher_labels__confidence_threshold=0.2,
        report__num_images=1,
        runtime__num_workers=1,
        rounds={
            "r1": {"teacher": "none", "fill_confident": False},
            "r2": {"teacher": "r1", "fill_confident": True},
        },
    )
    sh("git", "init", "-q", cwd=folder)
    sh("dvc", "add", "-q", "data/raw/cityscapes", cwd=folder)
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", "tiny", cwd=folder)
    sh("dvc", "repro", cwd=folder)
    changed = sh("git", "status", "--porcelain", "-uall", cwd=folder).splitlines()
    assert {line[:2] for line in changed} == {"??"}, changed  # nothing that git has was touched
    new = {line[3:] for line in changed}
    assert new <= {
        "dvc.lock",
        *(line for line in new if line.startswith("metrics/") and line.endswith((".json", ".csv"))),
    }
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", "run", cwd=folder)
    return folder


@pytest.fixture
def params_restored(workspace: Path):
    before = (workspace / "params.yaml").read_text()
    yield
    (workspace / "params.yaml").write_text(before)


def followed(workspace: Path, stages: set[str]) -> set[str]:
    """The stages and everything that depends on them."""
    edges = [line.split('"')[1::2] for line in sh("dvc", "dag", "--dot", cwd=workspace).splitlines() if "->" in line]
    found = set(stages)
    while more := {end for start, end in edges if start in found} - found:
        found |= more
    return found


def test_it_runs_from_end_to_end(workspace: Path) -> None:
    summary = json.loads((workspace / "metrics/summary.json").read_text())
    assert all(0 <= summary[name] <= 1 for name in ("teacher", "r1", "r2"))
    assert len(json.loads((workspace / "metrics/networks/teacher.json").read_text())["classes"]) == 19
    for name in ("r1", "r2"):
        labels = json.loads((workspace / f"metrics/labels/{name}.json").read_text())["scores"]
        assert labels["weak"]["precision"] == 1.0
        assert set(labels["merged"]) >= {"precision", "recall", "f1", "coverage", "mIoU"}
        assert labels["merged"]["coverage"] > labels["weak"]["coverage"]
        for image in TRAIN:
            label = read_label(workspace / f"data/pseudo_labels/{name}/labels/{image}.png")
            source = read_label(workspace / f"data/pseudo_labels/{name}/sources/{image}.png")
            weak = read_label(workspace / f"data/weak/{image}.png")
            assert ((label == 255) == (source == 0)).all()
            assert (label[weak != 255] == weak[weak != 255]).all()
        assert (workspace / f"data/pseudo_labels/{name}/README.md").exists()
    first = [read_label(workspace / f"data/rounds/r1/predictions/{part}/{TRAIN[0]}.png") for part in PREDICTED]
    later = [read_label(workspace / f"data/rounds/r2/predictions/{part}/{TRAIN[0]}.png") for part in PREDICTED]
    assert (first[0] == 255).all() and (first[1] == 0).all()  # no teacher yet
    assert (later[0] < 19).all() and (later[1] > 0).all()
    assert list((workspace / "metrics/panels").rglob("*.png"))


def test_a_second_repro_runs_nothing(workspace: Path) -> None:
    assert would_run(workspace) == set()


@pytest.mark.parametrize(
    ("change", "first", "spared"),
    [
        ({"sam__enabled": False}, "prompts@r1", {"weak_labels", "train_teacher", "embed", "predict@r1"}),
        ({"sampling__num_points": 7}, "prompts@r1", {"weak_labels", "train_teacher", "embed", "predict@r1"}),
        ({"rounds__r2__fill_confident": False}, "merge_labels@r2", {"predict@r2", "prompts@r2", "train_student@r1"}),
        ({"rounds__r1__teacher": "models/teacher"}, "predict@r1", {"weak_labels", "train_teacher", "embed"}),
        ({"selection__tau_weak": 0.5}, "select_masks@r1", {"prompts@r1", "sam_masks@r1", "embed", "train_teacher"}),
        ({"weak_labels__source": "data/fine/train"}, "weak_labels", {"prepare", "demo_data@demo", "embed"}),
    ],
)
def test_a_change_reruns_its_stage_and_what_follows(workspace, params_restored, change, first, spared) -> None:
    edit_params(workspace, **change)
    stages = followed(workspace, would_run(workspace) - {"check_paths"})  # which always writes the same
    following = {"train_student@r2", "summarize"} | (
        {"train_student@r1", "prompts@r2"} if "@r2" not in first else set()
    )
    assert first in stages and following <= stages
    known = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    assert spared <= set(known) and not stages & spared


@pytest.mark.parametrize("change", [{"runtime__num_workers": 2}, {"runtime__device": "cpu"}])
def test_runtime_reruns_nothing(workspace, params_restored, change) -> None:
    edit_params(workspace, **change)
    assert would_run(workspace) == set()


def test_no_training_stage_sees_fine_labels() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    fine = ("data/fine", "data/raw", "${dataset.root}", "${weak_labels.source}")
    deps = {name: stage.get("do", stage).get("deps", []) for name, stage in stages.items()}
    seeing = {name for name, paths in deps.items() if any(str(path).startswith(fine) for path in paths)}
    assert seeing == {"prepare", "weak_labels", "evaluate_labels", "evaluate_teacher", "evaluate", "panels"}
    for name in ("train_teacher", "train_student"):
        assert "data/dataset/train.json" in deps[name]


def test_two_workers_and_ray_make_the_bytes_that_one_made(workspace: Path, params_restored) -> None:
    made = [p for p in sorted(workspace.glob("data/**/*")) if p.suffix in (".png", ".json", ".zip")]
    before = {p: p.read_bytes() for p in made}
    assert any("pseudo_labels" in p.parts for p in made) and any("prompts" in p.parts for p in made)
    edit_params(workspace, runtime__num_workers=2)
    once = ("demo_data@demo", "prepare", "weak_labels")  # networks: test_segmentation.py
    of_r1 = ("prompts", "select_masks", "merge_labels")
    first = [f"{stage}@r1" for stage in of_r1]
    output = sh("dvc", "repro", "-sf", *once, *first, cwd=workspace)
    assert all(f"Running stage '{stage}'" in output for stage in (*once, *first))
    for path, content in before.items():
        assert path.read_bytes() == content, path
    edit_params(workspace, runtime__backend="ray")  # SAM's stage in two threads: test_sam_stages.py
    assert "Ray: 1 nodes, 2 CPUs" in sh("dvc", "repro", "-sf", "sam_masks@r1", cwd=workspace)
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_an_experiment(workspace: Path) -> None:
    output = sh("dvc", "exp", "run", "-S", "selection.tau_weak=0.99", "merge_labels@r1", cwd=workspace)
    assert "Running stage 'merge_labels@r1'" in output and "Running stage 'prompts@r1'" not in output
    sh("git", "checkout", "-q", ".", cwd=workspace)
    sh("dvc", "checkout", cwd=workspace)


def test_going_back_to_earlier_params_runs_nothing(workspace: Path, params_restored) -> None:
    masks = workspace / "data/rounds/r1/masks/files-0000.zip"
    before, params = masks.read_bytes(), (workspace / "params.yaml").read_text()
    edit_params(workspace, sampling__num_points=7)
    assert "Running stage 'sam_masks@r1'" in sh("dvc", "repro", "sam_masks@r1", cwd=workspace)
    assert masks.read_bytes() != before
    (workspace / "params.yaml").write_text(params)
    assert "> python" not in sh("dvc", "repro", cwd=workspace)
    assert masks.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "reruns"),
    [
        ("sesam/artifacts/label_png.py", set()),
        ("sesam/params.py", set()),
        ("sesam/artifacts/manifest.py", set()),
        ("sesam/reporting/pages.py", {"panels@r1", "panels@r2", "report"}),
    ],
)
def test_a_word_changed_in_shared_code(workspace: Path, path: str, reruns: set[str]) -> None:
    file = workspace / path
    before = file.read_text()
    file.write_text(before.replace('"""', '"""In other words: ', 1))
    try:
        assert would_run(workspace) == reruns
    finally:
        file.write_text(before)


def pushed_and_cloned(workspace: Path, folder: Path) -> Path:
    """What a colleague has after `git clone` and `dvc pull`."""
    sh("dvc", "remote", "add", "-f", "-d", "lab", str(folder / "remote"), cwd=workspace)
    sh("dvc", "push", cwd=workspace)
    sh("git", "add", "-A", cwd=workspace)
    sh("git", "commit", "-qm", "shared", cwd=workspace)
    sh("git", "clone", "-q", str(workspace), "colleague", cwd=folder)
    sh("dvc", "pull", cwd=folder / "colleague")
    return folder / "colleague"


def test_a_colleague_pulls_and_has_nothing_to_run(workspace: Path, tmp_path: Path) -> None:
    """Nor to fetch: SAM's weights are not there, as an official one's would not be."""
    colleague = pushed_and_cloned(workspace, tmp_path)
    name = f"data/pseudo_labels/r2/labels/{TRAIN[1]}.png"
    assert (colleague / name).read_bytes() == (workspace / name).read_bytes()
    assert not (colleague / "data/embeddings").exists()
    (colleague / "models/bundled_sam.pth").unlink()
    assert "Running stage" not in sh("dvc", "repro", cwd=colleague)


def test_an_image_is_explained(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In words, for a pixel of each source that occurs, and as a picture."""
    monkeypatch.chdir(workspace)
    name, data = TRAIN[0], Path("data/pseudo_labels/r1")

    def said(*arguments: str) -> str:
        explain.main([name, *arguments])
        return capsys.readouterr().out

    text = said("--round", "r1")
    components = read_json(Path(f"data/rounds/r1/selected/{name}.json"))["components"]
    lines = [line for line in text.splitlines() if not line.startswith(" ")]
    for number, (one, line) in enumerate(zip(components, lines, strict=False), 1):
        kept = "no mask kept" if one["candidate"] is None else f"mask {one['candidate'] + 1} kept"
        assert line.startswith(f"{number} ") and kept in line
    with Image.open(f"metrics/explained/r1/{name}.png") as picture:
        assert picture.height > picture.width
    labels, sources = (read_label(data / part / f"{name}.png") for part in ("labels", "sources"))
    classes = json.loads(Path("data/dataset/classes.json").read_text())["classes"]
    for source, kind in ((0, "none"), (1, "weak label"), (2, "SAM")):
        y, x = np.argwhere(sources == source)[0]
        text = said("--round", "r1", "--at", f"{x},{y}")
        label = "no class" if labels[y, x] == 255 else classes[labels[y, x]]
        assert text.startswith(f"Pixel ({x}, {y}) of {name}, round r1: {label}, from {kind}.\n")
        assert "The fine label says" in text and "The teacher" not in text
    assert "The teacher says" in said("--at", "5,5")
    with pytest.raises(SesamError, match="lies outside the image"):
        said("--at", "9999,0")
    with pytest.raises(SesamError, match="nobody is no training image"):
        explain.main(["nobody"])


def test_another_repository_trains_on_the_labels(workspace: Path, tmp_path: Path) -> None:
    """With DVC and mmsegmentation, as the card says, and nothing of ours."""
    colleague = pushed_and_cloned(workspace, tmp_path)
    third = tmp_path / "third"
    third.mkdir()
    sh("git", "init", "-q", cwd=third)
    sh("dvc", "init", "-q", cwd=third)
    sh("dvc", "import", "-q", str(colleague), "data/pseudo_labels/r2", cwd=third)
    (third / "cityscapes").symlink_to(workspace / "data/raw/cityscapes")
    code = (third / "r2/README.md").read_text().split("```python\n")[1].split("```")[0]
    begin = "config.work_dir"  # what a machine with 2 cores has the time for
    small = """
config.model.pretrained = None
config.model.backbone.depth = 18
config.model.data_preprocessor.size = (64, 64)
for part in (config.model.decode_head, config.model.auxiliary_head):
    part.channels, part.norm_cfg = 8, {"type": "BN"}
config.model.backbone.norm_cfg = {"type": "BN"}
config.model.backbone.type = "ResNetV1c"
config.model.decode_head.update(in_channels=512, c1_in_channels=64, c1_channels=8)
config.model.auxiliary_head.in_channels = 256
config.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
for step in config.train_pipeline:
    if step.type == "RandomCrop":
        step.crop_size = (64, 64)
    if step.type == "RandomResize":
        step.scale = (128, 64)
config.train_cfg.max_iters = 2
config.default_hooks.logger.interval = 1
"""
    (third / "train.py").write_text(code.replace(begin, small + begin, 1))
    said = sh(sys.executable, "train.py", cwd=third)
    losses = [line for line in said.splitlines() if "Iter(train)" in line and "loss:" in line]
    assert len(losses) == 2 and "nan" not in " ".join(losses)
    assert list((third / "trained").glob("iter_2.pth"))


def test_a_round_is_taken_away_and_comes_back(workspace: Path, tmp_path: Path, params_restored) -> None:
    """Last: it commits. The scores follow, and for a colleague too there is nothing to run."""
    edit_params(workspace, rounds={"r1": {"teacher": "none", "fill_confident": False}})
    output = sh("dvc", "repro", cwd=workspace)
    run = [line.split("stages.")[1] for line in output.splitlines() if line.startswith("> python")]
    assert run == ["summarize", "report"]
    assert "r2" not in (workspace / "metrics/summary.json").read_text()
    colleague = pushed_and_cloned(workspace, tmp_path)
    assert "Running stage" not in sh("dvc", "repro", cwd=colleague)
    sh("git", "checkout", "-q", "HEAD~1", "params.yaml", cwd=workspace)
    output = sh("dvc", "repro", cwd=workspace)
    run = {line.split("stages.")[1].split()[0] for line in output.splitlines() if line.startswith("> python")}
    assert run <= {"evaluate_labels", "evaluate", "summarize"}  # masks, labels and networks come from the run cache
    assert "r2" in (workspace / "metrics/summary.json").read_text()
