"""The DAG: one run from end to end, what a change reruns, and sharing through a remote.

The data set is drawn scenes in Cityscapes' layout: train with fine and coarse labels, train_extra with coarse ones.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, checked_out, edit_params, sh, write_params
from dataset_factories import cityscapes_image
from dvc.repo import Repo
from networkx import ancestors
from PIL import Image

from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.label_png import read_label
from sesam.cli.main import main
from sesam.demo.classes import CLASSES
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.presets import load_preset
from sesam.weak import weak_label

TRAIN = ["aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "augsburg_000000_000000"]
VAL = ["frankfurt_000000_000294", "lindau_000000_000019"]
PREDICTED = ("labels", "confidence")
LABEL_IDS = [7, 8, 11, 21, 23, 17, 20, 24, 26]  # Cityscapes' of the drawn classes, in their order


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


def draw_cityscapes(root: Path) -> None:
    """Drawn scenes as Cityscapes; the last training image belongs to train_extra."""
    config = load_preset(ROOT / "presets/demo.yaml").weak_labels.model_copy(update={"kind": "coarse"})
    ids = np.zeros(256, np.uint8)
    ids[: len(CLASSES)] = LABEL_IDS
    for number, image_id in enumerate(TRAIN + VAL):
        scene = draw_scene((5, number))
        split = "val" if image_id in VAL else "train_extra" if image_id == TRAIN[-1] else "train"
        fine = None if split == "train_extra" else ids[scene.labels]
        cityscapes_image(root, split, image_id, scene.image, fine, ids[weak_label(scene.labels, config)])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with tiny params in which `dvc repro` has run, and been committed."""
    folder = checked_out(tmp_path_factory.mktemp("dag") / "sesam")
    draw_cityscapes(folder / "data/raw/cityscapes")
    write_params(folder, "demo")
    edit_params(
        folder,
        demo__demo={"train": 2, "val": 1, "seed": 5},
        dataset__format="cityscapes",
        dataset__root="data/raw/cityscapes",
        dataset__train=["train", "train_extra"],
        dataset__classes=None,
        dataset__palette=None,
        weak_labels__kind="coarse",
        weak_labels__source="data/raw/cityscapes/gtCoarse",
        schedule__max_iters=4,
        schedule__batch_size=2,
        teacher_labels__confidence_threshold=0.2,
        report__num_images=1,
        runtime__num_workers=1,
        rounds__r2__fill_confident=True,
    )
    sh("git", "init", "-q", cwd=folder)
    sh("dvc", "add", "-q", "data/raw/cityscapes", cwd=folder)
    sh("git", "add", "-A", cwd=folder)
    sh("git", "commit", "-qm", "tiny", cwd=folder)
    sh("dvc", "repro", cwd=folder)
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
    """What a colleague has after `git clone` and `dvc pull`."""
    sh("dvc", "remote", "add", "-f", "-d", "lab", str(folder / "remote"), cwd=workspace)
    sh("dvc", "push", cwd=workspace)
    sh("git", "add", "-A", cwd=workspace)
    sh("git", "commit", "-qm", "shared", cwd=workspace)
    sh("git", "clone", "-q", str(workspace), "colleague", cwd=folder)
    sh("dvc", "pull", cwd=folder / "colleague")
    return folder / "colleague"


@pytest.fixture(scope="module")
def colleague(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share(workspace, tmp_path_factory.mktemp("shared"))


def test_the_dag_runs_from_end_to_end(workspace: Path) -> None:
    for name in ("teacher", "r1", "r2"):
        metrics = read_json(workspace / f"metrics/networks/{name}.json")
        assert 0 <= metrics["mIoU"] <= 1 and len(metrics["classes"]) == 19
    for name in ("r1", "r2"):
        scores = read_json(workspace / f"metrics/labels/{name}.json")["scores"]
        assert scores["weak"]["precision"] == 1.0
        assert set(scores["merged"]) >= {"precision", "recall", "f1", "coverage", "mIoU"}
        assert scores["merged"]["coverage"] > scores["weak"]["coverage"]
        for image_id in TRAIN:
            label = read_label(workspace / f"data/pseudo_labels/{name}/labels/{image_id}.png")
            source = read_label(workspace / f"data/pseudo_labels/{name}/sources/{image_id}.png")
            weak = read_label(workspace / f"data/weak/{image_id}.png")
            assert ((label == 255) == (source == 0)).all()
            assert (label[weak != 255] == weak[weak != 255]).all()
        assert (workspace / f"data/pseudo_labels/{name}/README.md").exists()
    (classes, confidence), (later_classes, later_confidence) = (
        [read_label(workspace / f"data/rounds/{name}/predictions/{kind}/{TRAIN[0]}.png") for kind in PREDICTED]
        for name in ("r1", "r2")
    )
    assert (classes == 255).all() and (confidence == 0).all()  # no teacher
    assert (later_classes < 19).all() and (later_confidence > 0).all()
    assert list((workspace / "metrics/panels").rglob("*.png"))


def test_a_second_repro_only_checks_the_inputs(workspace: Path) -> None:
    output = sh("dvc", "repro", cwd=workspace)
    assert [line for line in output.splitlines() if line.startswith("> ")] == ["> python -m stages.check_inputs"]


@pytest.mark.parametrize(
    ("change", "first", "unaffected"),
    [
        ({"sam__enabled": False}, "prompts@r1", {"weak_labels", "train_teacher", "predict@r1"}),
        ({"sampling__num_points": 7}, "prompts@r1", {"weak_labels", "train_teacher", "embed", "predict@r1"}),
        ({"rounds__r2__fill_confident": False}, "merge_labels@r2", {"predict@r2", "prompts@r2", "train_student@r1"}),
        ({"rounds__r1__teacher": "teacher"}, "predict@r1", {"weak_labels", "train_teacher", "embed"}),
        ({"selection__tau_weak": 0.5}, "select_masks@r1", {"prompts@r1", "sam_masks@r1", "embed", "train_teacher"}),
        ({"weak_labels__source": "data/fine/train"}, "weak_labels", {"prepare", "demo_data@demo", "embed"}),
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


@pytest.mark.parametrize("change", [{"runtime__num_workers": 2}, {"runtime__device": "cpu"}])
def test_runtime_reruns_nothing(workspace: Path, params_restored: None, change: dict) -> None:
    edit_params(workspace, **change)
    assert stages_to_run(workspace) == set()


@pytest.mark.parametrize(
    ("path", "reruns"),
    [
        ("sesam/artifacts/label_png.py", set()),
        ("sesam/params.py", set()),
        ("sesam/artifacts/manifest.py", set()),
        ("sesam/reporting/pages.py", {"panels@r1", "panels@r2", "report"}),
    ],
)
def test_a_change_in_shared_code(workspace: Path, path: str, reruns: set[str]) -> None:
    file = workspace / path
    before = file.read_text()
    file.write_text(before.replace('"""', '"""In other words: ', 1))
    try:
        assert stages_to_run(workspace) == reruns
    finally:
        file.write_text(before)


def test_no_training_stage_depends_on_fine_labels() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    fine = ("data/fine", "data/raw", "${dataset.root}", "${weak_labels.source}")
    deps = {name: stage.get("do", stage).get("deps", []) for name, stage in stages.items()}
    dependent = {name for name, paths in deps.items() if any(str(path).startswith(fine) for path in paths)}
    assert dependent == {"prepare", "weak_labels", "evaluate_labels", "evaluate_teacher", "evaluate", "panels"}
    for name in ("train_teacher", "train_student"):
        assert "data/dataset/train.json" in deps[name]


def test_two_workers_and_ray_write_the_same_bytes_as_one_worker(workspace: Path, params_restored: None) -> None:
    files = [path for path in sorted(workspace.glob("data/**/*")) if path.suffix in (".png", ".json", ".zip")]
    before = {path: path.read_bytes() for path in files}
    assert all(any(folder in path.parts for path in files) for folder in ("pseudo_labels", "prompts"))
    edit_params(workspace, runtime__num_workers=2)
    stages = ("demo_data@demo", "prepare", "weak_labels", "prompts@r1", "select_masks@r1", "merge_labels@r1")
    output = sh("dvc", "repro", "-sf", *stages, cwd=workspace)  # networks: test_segmentation.py
    assert all(f"Running stage '{stage}'" in output for stage in stages)
    assert {path for path, content in before.items() if path.read_bytes() != content} == set()
    edit_params(workspace, runtime__backend="ray")  # SAM's stage in two threads: test_sam_stages.py
    assert "Ray: 1 nodes, 2 CPUs" in sh("dvc", "repro", "-sf", "sam_masks@r1", cwd=workspace)
    assert {path for path, content in before.items() if path.read_bytes() != content} == set()


def test_an_experiment_and_back(workspace: Path) -> None:
    masks = workspace / "data/rounds/r1/masks/files-0000.zip"
    before = masks.read_bytes()
    output = sh("dvc", "exp", "run", "-S", "sampling.num_points=7", "sam_masks@r1", cwd=workspace)
    assert stages_run(output) == ["prompts r1", "sam_masks r1"]
    assert masks.read_bytes() != before
    sh("git", "checkout", "-q", ".", cwd=workspace)
    assert stages_run(sh("dvc", "repro", cwd=workspace)) == []
    assert masks.read_bytes() == before


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


def test_another_repository_trains_on_the_labels(workspace: Path, colleague: Path, tmp_path: Path) -> None:
    third = tmp_path / "third"
    third.mkdir()
    sh("git", "init", "-q", cwd=third)
    sh("dvc", "init", "-q", cwd=third)
    sh("dvc", "import", "-q", str(colleague), "data/pseudo_labels/r2", cwd=third)
    (third / "cityscapes").symlink_to(workspace / "data/raw/cityscapes")
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
config.train_cfg.max_iters = 2
config.default_hooks.logger.interval = 1
"""
    (third / "train.py").write_text(code.replace(start, small + start, 1))
    log = sh(sys.executable, "train.py", cwd=third)
    losses = [line for line in log.splitlines() if "Iter(train)" in line and "loss:" in line]
    assert len(losses) == 2 and "nan" not in " ".join(losses)
    assert list((third / "trained").glob("iter_2.pth"))


def test_a_round_is_removed_and_restored(workspace: Path, tmp_path: Path, params_restored: None) -> None:
    """Last, because it commits. The scores follow, and a colleague has nothing to run."""
    edit_params(workspace, rounds={"r1": {"teacher": "none", "fill_confident": False}})
    assert stages_run(sh("dvc", "repro", cwd=workspace)) == ["summarize", "report"]
    assert "r2" not in (workspace / "metrics/summary.json").read_text()
    assert stages_to_run(share(workspace, tmp_path)) <= {"report"}  # which lacks files of the removed round
    sh("git", "checkout", "-q", "HEAD~1", "params.yaml", cwd=workspace)
    ran = {command.split()[0] for command in stages_run(sh("dvc", "repro", cwd=workspace))}
    assert ran <= {"evaluate_labels", "evaluate", "summarize"}  # DVC has the masks, labels and networks
    assert "r2" in (workspace / "metrics/summary.json").read_text()
