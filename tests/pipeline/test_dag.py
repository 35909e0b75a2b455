"""The DAG, by the commands of the docs: one run from end to end, what a change reruns, sharing, a shared cache."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, checked_out, edit_params, sh
from dvc.repo import Repo
from forked_commands import forked_commands
from networkx import ancestors
from PIL import Image
from unit.test_docs import WALKTHROUGH, read_commands

from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.image_io import read_label
from sesam.cli.main import main
from sesam.demo.classes import CLASSES
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.presets import load_preset
from sesam.simulation import simulate_weak_label

TRAIN, VAL = ["0", "1", "2"], ["3"]
PREDICTED = ("labels", "confidence")
COMMANDS = [line for page in WALKTHROUGH for line in read_commands(page)]
STARTED = COMMANDS.index("dvc repro") + 1  # what comes before makes the workspace
ALWAYS = {"check_inputs"}  # always runs, and its output never changes


def stages_to_run(workspace: Path, downstream: bool = False) -> set[str]:
    """The stages that DVC finds changed before it runs any; downstream: also all that depend on them."""
    with chdir(workspace), Repo() as repo:
        names = {stage.addressing for stage in repo.reproduce(dry=True)} - ALWAYS
        if downstream:
            graph = repo.index.graph  # from stages to their dependencies
            changed = [stage for stage in graph if stage.addressing in names]
            names |= {dependent.addressing for stage in changed for dependent in ancestors(graph, stage)}
        return names


def stages_run(output: str) -> list[str]:
    """The stages that `dvc repro` has run, not restored from the run cache, by its output."""
    commands = [line.removeprefix("> python -m stages.") for line in output.splitlines() if line.startswith("> ")]
    return [command for command in commands if command not in ALWAYS]


def draw_photographs(root: Path) -> None:
    """Drawn scenes where docs/getting-started.md has photographs and annotators' files."""
    config = load_preset(ROOT / "presets/demo.yaml").weak_labels
    for number, image_id in enumerate(TRAIN + VAL):
        scene, split = draw_scene((5, number)), "train" if image_id in TRAIN else "val"
        files = {f"mine/images/{split}": scene.image, f"mine/labels/{split}": scene.labels}
        if split == "train":
            files["annotated"] = simulate_weak_label(scene.labels, config)
        for directory, pixels in files.items():
            (root / directory).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / directory / f"{image_id}.png")


def set_small_params(folder: Path) -> None:
    """What docs/getting-started.md sets in params.yaml, and a run as small as possible."""
    small = yaml.safe_load((ROOT / "presets/demo.yaml").read_text())
    small["network"]["dtype"] = "float32"
    small["schedule"] |= {"max_iters": 4, "batch_size": 2, "crop_size": [64, 64]}
    edit_params(
        folder,
        **{f"{group}__{key}": value for group in ("network", "schedule", "sam") for key, value in small[group].items()},
        demo={"demo": {"train": 2, "val": 1, "seed": 5}},
        weak_labels__path="data/raw/annotated",
        teacher__confidence_threshold=0.2,
        rounds={name: {"teacher": t, "fill_confident": name == "r2"} for name, t in (("r1", "none"), ("r2", "r1"))},
        report__num_images=1,
        runtime__num_workers=1,
    )


def run_line(line: str, folder: Path, replacements: dict[str, str]) -> None:
    """Run a line of a page in `folder`, with the words replaced that are examples."""
    command = re.sub("|".join(replacements), lambda match: replacements[match[0]], line)
    sh("bash", "-c", f"export COLUMNS=120; {re.sub('^sesam ', 'python -m sesam ', command)}", cwd=folder)


@pytest.fixture(scope="module", autouse=True)
def commands_start_at_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with forked_commands(tmp_path_factory.mktemp("forked")) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the commands of docs/getting-started.md have run, up to `dvc repro`, and been committed."""
    folder = checked_out(tmp_path_factory.mktemp("dag") / "sesam")
    draw_photographs(folder / "data/raw")
    sh("git", "init", "-q", cwd=folder)
    for line in COMMANDS[:STARTED]:
        if not line.startswith("source "):
            run_line(line, folder, {"road,car": ",".join(CLASSES)})
        if line.startswith("sesam init"):
            set_small_params(folder)
            sh("dvc", "add", "-q", "data/raw/mine", "data/raw/annotated", cwd=folder)
            sh("git", "add", "-A", cwd=folder)
            sh("git", "commit", "-qm", "tiny", cwd=folder)
    changes = sh("git", "status", "--porcelain", "-uall", cwd=folder).splitlines()
    assert {line[:2] for line in changes} == {"??"}, changes  # no file of git's was changed
    new = {line[3:] for line in changes} - {"dvc.lock"}
    assert all(path.startswith("metrics/") and path.endswith((".json", ".csv", ".txt")) for path in new), new
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", "run", cwd=folder)
    return folder


@pytest.fixture
def params_restored(workspace: Path) -> Iterator[None]:
    before = (workspace / "params.yaml").read_text()
    yield
    (workspace / "params.yaml").write_text(before)


def share(workspace: Path, folder: Path) -> Path:
    """What a colleague has after `git clone` and `sesam pull`."""
    sh("dvc", "remote", "add", "-f", "-d", "shared", str(folder / "remote"), cwd=workspace)
    sh("dvc", "push", cwd=workspace)
    sh("git", "add", "-A", cwd=workspace)
    sh("git", "commit", "-qm", "shared", cwd=workspace)
    sh("git", "clone", "-q", str(workspace), "colleague", cwd=folder)
    run_line("sesam pull", folder / "colleague", {"road,car": ""})
    return folder / "colleague"


@pytest.fixture(scope="module")
def colleague(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share(workspace, tmp_path_factory.mktemp("shared"))


def test_the_dag_runs_from_end_to_end(workspace: Path) -> None:
    for name in ("baseline", "r1", "r2"):
        metrics = read_json(workspace / f"metrics/networks/{name}.json")
        assert 0 <= metrics["mIoU"] <= 1 and [*metrics["class_iou"]] == [*CLASSES]
    for name in ("r1", "r2"):
        scores = read_json(workspace / f"metrics/labels/{name}.json")["scores"]
        assert scores["weak"]["precision"] == 1.0
        assert set(scores["pseudo_labels"]) >= {"precision", "recall", "f1", "labeled", "mIoU"}
        assert scores["pseudo_labels"]["labeled"] > scores["weak"]["labeled"]
        for image_id in TRAIN:
            label = read_label(workspace / f"data/pseudo_labels/{name}/labels/{image_id}.png")
            source = read_label(workspace / f"data/pseudo_labels/{name}/sources/{image_id}.png")
            weak = read_label(workspace / f"data/weak/{image_id}.png")
            assert ((label == 255) == (source == 0)).all()
            assert (label[weak != 255] == weak[weak != 255]).all()
        assert (workspace / f"data/pseudo_labels/{name}/README.md").exists()
    (classes, confidence), (later_classes, later_confidence) = (
        [read_label(workspace / f"data/rounds/{name}/teacher_predictions/{kind}/{TRAIN[0]}.png") for kind in PREDICTED]
        for name in ("r1", "r2")
    )
    assert (classes == 255).all() and (confidence == 0).all()  # no teacher
    assert (later_classes < len(CLASSES)).all() and (later_confidence > 0).all()
    assert list((workspace / "metrics/panels").rglob("*.png"))


def test_a_second_repro_only_checks_the_inputs(workspace: Path) -> None:
    output = sh("dvc", "repro", cwd=workspace)
    assert [line for line in output.splitlines() if line.startswith("> ")] == ["> python -m stages.check_inputs"]


@pytest.mark.parametrize(
    ("change", "first", "unaffected"),
    [
        ({"sam__enabled": False}, "prompts@r1", {"weak_labels", "train_baseline", "teacher_predictions@r1"}),
        ({"sampling__num_points": 7}, "prompts@r1", {"weak_labels", "train_baseline", "embed"}),
        ({"rounds__r2__fill_confident": False}, "merge_labels@r2", {"prompts@r2", "train_student@r1"}),
        (
            {"selection__min_coverage": 0.5},
            "select_masks@r1",
            {"prompts@r1", "sam_masks@r1", "embed", "train_baseline"},
        ),
        ({"evaluation__flip": True}, "teacher_predictions@r2", {"train_baseline", "embed"}),
        ({"weak_labels__mix__none": 0.5}, "weak_labels", {"prepare", "embed"}),
        ({"weak_labels__path": "data/fine/train"}, "prepare", {"demo_data@demo"}),  # it may need more fine labels
    ],
)
def test_a_change_reruns_its_stage_and_what_depends_on_it(
    workspace: Path, params_restored: None, change: dict, first: str, unaffected: set[str]
) -> None:
    edit_params(workspace, **change)
    stages = stages_to_run(workspace, downstream=True)
    assert stages >= {first, "train_student@r2", "summarize"}
    assert "@r2" in first or stages >= {"train_student@r1", "prompts@r2"}
    known = yaml.safe_load((workspace / "dvc.lock").read_text())["stages"]
    assert unaffected <= set(known) and not stages & unaffected


def test_runtime_reruns_nothing(workspace: Path, params_restored: None) -> None:
    edit_params(workspace, runtime__num_workers=2, runtime__device="cpu")
    assert stages_to_run(workspace) == set()


@pytest.mark.parametrize(
    ("paths", "reruns"),
    [
        (["sesam/artifacts/image_io.py", "sesam/params.py", "sesam/artifacts/manifest.py"], set()),
        (["sesam/reporting/layout.py"], {"panels@r1", "panels@r2", "report"}),
    ],
)
def test_a_change_in_shared_code(workspace: Path, paths: list[str], reruns: set[str]) -> None:
    before = {workspace / path: (workspace / path).read_text() for path in paths}
    for file, text in before.items():
        file.write_text(text.replace('"""', '"""In other words: ', 1))
    try:
        assert stages_to_run(workspace) == reruns
    finally:
        for file, text in before.items():
            file.write_text(text)


def test_no_training_stage_depends_on_fine_labels() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    fine = ("data/fine", "data/raw", "${dataset.root}", "${weak_labels.path}")
    deps = {name: stage.get("do", stage).get("deps", []) for name, stage in stages.items()}
    dependent = {name for name, paths in deps.items() if any(str(path).startswith(fine) for path in paths)}
    assert dependent == {"prepare", "weak_labels", "evaluate_labels", "evaluate_baseline", "evaluate", "panels"}
    for name in ("train_baseline", "train_student"):
        assert "data/dataset/train.json" in deps[name]


@pytest.mark.long
def test_two_workers_write_the_same_bytes_as_one(workspace: Path, params_restored: None) -> None:
    files = [path for path in sorted(workspace.glob("data/**/*")) if path.suffix in (".png", ".json", ".zip")]
    before = {path: path.read_bytes() for path in files}
    assert all(any(folder in path.parts for path in files) for folder in ("pseudo_labels", "prompts"))
    edit_params(workspace, runtime__num_workers=2)
    stages = ("prepare", "weak_labels", "prompts@r1", "merge_labels@r1")
    output = sh(
        "dvc", "repro", "-sf", *stages, cwd=workspace
    )  # SAM's: test_sam_stages.py; networks: test_segmentation.py
    assert all(f"Running stage '{stage}'" in output for stage in stages)
    assert {path for path, content in before.items() if path.read_bytes() != content} == set()


def test_an_experiment_and_back(workspace: Path) -> None:
    prompts = workspace / "data/rounds/r1/prompts/files-0000.zip"
    before = prompts.read_bytes()
    output = sh("dvc", "exp", "run", "-S", "sampling.num_points=7", "prompts@r1", cwd=workspace)
    assert stages_run(output) == ["prompts r1"]
    assert prompts.read_bytes() != before
    sh("git", "checkout", "-q", ".", cwd=workspace)
    assert stages_run(sh("dvc", "repro", cwd=workspace)) == []
    assert prompts.read_bytes() == before


def test_a_colleague_pulls_and_has_nothing_to_run(workspace: Path, colleague: Path) -> None:
    """Nor to download: SAM's weights are missing here, as published ones would be."""
    name = f"data/pseudo_labels/r2/labels/{TRAIN[1]}.png"
    assert (colleague / name).read_bytes() == (workspace / name).read_bytes()
    assert not (colleague / "data/embeddings").exists()
    (colleague / "sesam/sam/bundled_sam.pth").unlink()
    assert stages_run(sh("dvc", "repro", cwd=colleague)) == []


def test_an_image_is_explained(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(workspace)
    name, data = TRAIN[0], Path("data/pseudo_labels/r1")

    def said(*arguments: str) -> str:
        main(["explain", name, *arguments])
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
        text = said("--round", "r1", "--pixel", f"{x},{y}")
        label = "no class" if labels[y, x] == 255 else classes[labels[y, x]]
        assert text.startswith(f"Pixel ({x}, {y}) of {name}, round r1: {label}, from {kind}.\n")
        assert "\nfine: " in text and "\nteacher: " not in text
    assert "\nteacher: " in said("--pixel", "5,5")
    with pytest.raises(SesamError, match="is outside the image"):
        said("--pixel", "9999,0")
    with pytest.raises(SesamError, match="nobody is not a training image id"):
        main(["explain", "nobody"])


@pytest.mark.long
def test_another_repository_trains_on_the_labels(workspace: Path, tmp_path: Path) -> None:
    third = tmp_path / "third"  # after `dvc import`, see the commands of the docs
    shutil.copytree(workspace / "data/pseudo_labels/r2", third / "r2")
    (third / "mine").symlink_to(workspace / "data/raw/mine")
    code = (third / "r2/README.md").read_text().split("```python\n")[1].split("```")[0]
    start = "config.work_dir"  # what follows makes it small enough for two cores
    small = """
config.model.pretrained = None
config.model.backbone.depth = 18
config.model.data_preprocessor.size = (64, 64)
for head in (config.model.decode_head, config.model.auxiliary_head):
    head.channels, head.norm_cfg = 8, {"type": "BN"}
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
    if step.type == "Pad":
        step.size = (64, 64)
config.train_cfg.max_iters = 2
config.default_hooks.logger.interval = 1
"""
    (third / "train.py").write_text(code.replace(start, small + start, 1))
    log = sh(sys.executable, "train.py", cwd=third)
    losses = [line for line in log.splitlines() if "Iter(train)" in line and "loss:" in line]
    assert len(losses) == 2 and "nan" not in " ".join(losses)
    assert list((third / "trained").glob("iter_2.pth"))


@pytest.mark.long
def test_a_round_is_removed_and_restored(workspace: Path, tmp_path: Path, params_restored: None) -> None:
    """It commits, so it comes late. The scores follow, and a colleague has nothing to run."""
    edit_params(workspace, rounds={"r1": {"teacher": "none", "fill_confident": False}})
    assert stages_run(sh("dvc", "repro", cwd=workspace)) == ["summarize", "report"]
    assert "r2" not in (workspace / "metrics/summary.json").read_text()
    assert stages_to_run(share(workspace, tmp_path)) <= {"report"}  # which lacks files of the removed round
    sh("git", "checkout", "-q", "HEAD~1", "params.yaml", cwd=workspace)
    ran = {command.split()[0] for command in stages_run(sh("dvc", "repro", cwd=workspace))}
    assert ran <= {"evaluate_labels", "evaluate", "summarize"}  # DVC has the masks, labels and networks
    assert "r2" in (workspace / "metrics/summary.json").read_text()


def test_the_other_commands_of_the_docs(workspace: Path, tmp_path: Path) -> None:
    """Last, because it links the workspace to a shared cache."""
    group = sh("id", "-gn", cwd=workspace).strip()
    replacements = {
        "chgrp lab": f"chgrp {group}",
        "/lab/git/sesam": str(workspace),
        "/lab": str(tmp_path),
        " ID ": f" {TRAIN[0]} ",
        "FOLDER": "data/raw/mine/images/val",
    }
    # explain and experiments have a test; the queue's start takes a minute
    skipped = ("source ", "pip ", "sesam explain ", "dvc repro", "dvc exp ", "dvc queue ")
    third = tmp_path / "third"  # a project without SeSAM
    third.mkdir()
    for line in dict.fromkeys(COMMANDS[STARTED:]):  # each once
        if line.startswith("dvc import"):
            line = f"cd {third} && git init -q && dvc init -q && {line}"
        if not line.startswith(skipped):
            run_line(line, workspace, replacements)
    assert (workspace / "metrics/report.html").stat().st_size > 4e6
    assert (workspace / f"labeled/labels/{VAL[0]}.png").exists()
    label = f"r1/labels/{TRAIN[0]}.png"
    assert (third / label).read_bytes() == (workspace / "data/pseudo_labels" / label).read_bytes()
    check_shared_cache(workspace, tmp_path)


def check_shared_cache(workspace: Path, tmp_path: Path) -> None:
    """Stages of another clone with the same cache never write through its links."""
    label = f"data/pseudo_labels/r1/labels/{TRAIN[0]}.png"
    assert (workspace / label).is_symlink() and not (workspace / label).stat().st_mode & 0o222
    other = tmp_path / "other"
    sh("git", "clone", "-q", str(workspace), str(other), cwd=tmp_path)
    shutil.copy(workspace / ".dvc/config.local", other / ".dvc")
    sh("dvc", "checkout", cwd=other)
    before = (workspace / label).read_bytes()
    assert (other / label).read_bytes() == before and (other / label).resolve() == (workspace / label).resolve()
    edit_params(other, selection__min_coverage=1.0)
    assert "Running stage 'merge_labels@r1'" in sh("dvc", "repro", "merge_labels@r1", cwd=other)
    assert (workspace / label).read_bytes() == before
    assert "changed outs" not in sh("dvc", "status", cwd=workspace)
