"""With a SAM that never errs, the pseudo-labels must nearly equal the fine labels, whatever annotators drew."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import edit_params, write_params
from oracle_sam import OracleSam
from PIL import Image

from sesam.artifacts.atomic_io import read_json, sha256, write_json
from sesam.artifacts.image_io import write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.demo.classes import CLASSES, PALETTE
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.sam import registry
from stages import evaluate_labels, merge_labels, prompts, sam_masks, select_masks, teacher_predictions, weak_labels

IMAGES = 4


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene((9, k)) for k in range(IMAGES)]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes) -> Path:
    """Scenes with fine labels, and an oracle in the place of the bundled SAM."""
    monkeypatch.chdir(tmp_path)
    write_params(Path(), "demo")
    edit_params(tmp_path, runtime__num_workers=1)
    records = []
    for k, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(f"{k}.png")
        write_label(Path(f"data/fine/train/{k}.png"), scene.labels, PALETTE)
        records.append(ImageRecord(str(k), f"{k}.png", *scene.labels.shape, sha256(Path(f"{k}.png"))))
    write_json(Path("data/embeddings.json"), {})  # a dependency of sam_masks
    Manifest("scenes", tuple(CLASSES), PALETTE, tuple(records), ()).save()
    oracle = OracleSam([(scene.image, scene.labels) for scene in scenes])
    monkeypatch.setitem(registry.MODELS, "bundled", registry.Model(lambda *_: oracle, embedding_bytes=2))
    return tmp_path


ALL = (weak_labels, teacher_predictions, prompts, sam_masks, select_masks, merge_labels, evaluate_labels)


def run_stages(monkeypatch: pytest.MonkeyPatch, *stages: ModuleType) -> dict:
    """Run stages of round r1; the metrics of its pseudo-labels, which nearly equal the fine labels."""
    for stage in stages:
        monkeypatch.setattr(sys, "argv", [stage.__name__, "r1"])
        stage.main()
    metrics = read_json(Path("metrics/labels/r1.json"))
    merged = metrics["scores"]["pseudo_labels"]
    assert merged["precision"] >= 0.97 and merged["recall"] >= 0.95 and merged["mIoU"] >= 0.90
    return metrics


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("scribble", {}),
        ("coarse", {}),
        ("point", {}),
        ("scribble", {"sampling__prompt_type": "mask"}),
        ("coarse", {"sampling__prompt_type": "box"}),
        ("point", {"sampling__num_points": 1}),
        ("scribble", {"sampling__strategy": "center"}),
    ],
)
def test_pseudo_labels_nearly_equal_fine_labels(workspace: Path, monkeypatch, kind: str, changes: dict) -> None:
    edit_params(workspace, weak_labels__kind=kind, **changes)
    metrics = run_stages(monkeypatch, *ALL)
    assert all(
        scores["recall"] is None or scores["recall"] >= 0.9
        for scores in metrics["class_scores"]["pseudo_labels"].values()
    )
    outcomes = metrics["component_outcomes"].values()
    assert sum(counts["kept"] for counts in outcomes) >= 0.97 * sum(sum(counts.values()) for counts in outcomes)


@pytest.mark.parametrize("annotated", [0, 1])
def test_concepts_label_images_with_and_without_annotation(workspace: Path, monkeypatch, annotated: int) -> None:
    edit_params(workspace, weak_labels__mix__none=1.0 - annotated, sampling__prompt_type="concept", sam__model="sam3")
    edit_params(workspace, sam__checkpoint="a.safetensors", sam__sha256="0" * 64)
    monkeypatch.setitem(registry.MODELS, "sam3", registry.MODELS["bundled"])
    metrics = run_stages(monkeypatch, *ALL)
    assert metrics["scores"]["pseudo_labels"]["mIoU"] >= 0.999
    asked = {name: sum(counts.values()) for name, counts in metrics["component_outcomes"].items()}
    present = {name: counts["kept"] for name, counts in metrics["component_outcomes"].items()}
    assert asked == (present if annotated else dict.fromkeys(CLASSES, IMAGES))


def test_labels_without_a_pixel_are_refused(workspace: Path, monkeypatch) -> None:
    edit_params(workspace, weak_labels__min_area=1_000_000)
    with pytest.raises(SesamError, match="labels no pixel of any image"):
        run_stages(monkeypatch, *ALL)
    assert not Path("data/pseudo_labels/r1/labels").exists()


def test_wrong_predictions_do_not_degrade_labels(workspace: Path, monkeypatch, scenes) -> None:
    """Components of confident predictions, some of them wrong, prompt SAM and label pixels, as in a second round."""
    edit_params(workspace, rounds={"r1": {"teacher": "baseline", "fill_confident": True}})
    rng = np.random.default_rng(0)
    for k, scene in enumerate(scenes):
        predicted, confidence = scene.labels.copy(), np.full_like(scene.labels, 255)
        confidence[rng.random(scene.labels.shape) < 0.1] = 0
        for _ in range(8):  # wrong blobs within objects
            y, x = rng.integers(0, 240, 2)
            predicted[y : y + 9, x : x + 9] = rng.integers(0, len(CLASSES))
        write_label(Path(f"data/rounds/r1/teacher_predictions/labels/{k}.png"), predicted, PALETTE)
        write_gray(Path(f"data/rounds/r1/teacher_predictions/confidence/{k}.png"), confidence)
    metrics = run_stages(monkeypatch, weak_labels, prompts, sam_masks, select_masks, merge_labels, evaluate_labels)
    assert metrics["scores"]["pseudo_labels"]["precision"] > metrics["scores"]["confident"]["precision"]
    outcomes = metrics["component_outcomes"].values()
    assert any(sum(counts.values()) > counts["kept"] for counts in outcomes)  # the blobs' masks are rejected
