"""The Python API for one image gives what the pipeline gives, and the notebook that shows it runs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, edit_params, write_params
from PIL import Image

import sesam
from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.image_io import write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.artifacts.sources import load_pseudo_label
from sesam.artifacts.supervision import save_supervision
from sesam.demo.classes import CLASSES, PALETTE
from sesam.demo.scenes import Scene
from sesam.errors import SesamError
from sesam.params import Params, load_params
from sesam.paths import WEAK_LABELS, round_dir
from sesam.simulation import simulate_weak_label

NOTEBOOK = ROOT / "examples/one_image.ipynb"


def test_pseudo_label_equals_the_stages_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params, scene: Scene
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    round_params = {"r1": {"teacher": "baseline", "fill_confident": True}}
    edit_params(tmp_path, rounds=round_params, runtime__num_workers=1)
    Image.fromarray(scene.image).save("image.png")
    record = ImageRecord("street/7", "image.png", *scene.labels.shape, sha256(Path("image.png")))
    Manifest("scenes", CLASSES, PALETTE, (record,), ()).save(Path("data/dataset"))
    save_supervision({record.id: "scribble"})
    weak = simulate_weak_label(scene.labels, params.weak_labels)
    write_label(WEAK_LABELS / f"{record.id}.png", weak, PALETTE)
    confidence = np.random.default_rng(0).integers(230, 256, weak.shape).astype(np.uint8)
    folder = round_dir("r1", "teacher_predictions")
    write_label(folder / "labels" / f"{record.id}.png", scene.labels, PALETTE)
    write_gray(folder / "confidence" / f"{record.id}.png", confidence)
    for stage in ("prompts", "embed", "sam_masks", "select_masks", "merge_labels"):
        monkeypatch.setattr(sys, "argv", [stage, "r1"])
        importlib.import_module(f"stages.{stage}").main()
    labels, sources = load_pseudo_label("r1", record, len(CLASSES))

    sam_model, predictions = sesam.load_sam("bundled"), (scene.labels, confidence)
    result = sesam.pseudo_label(
        scene.image, weak, sam_model, params=load_params(), predictions=predictions, image_id=record.id
    )
    assert np.array_equal(result.labels, labels) and np.array_equal(result.sources, sources)
    assert set(np.unique(sources)) == {0, 1, 2, 3}


def test_params_are_overrides_of_the_defaults(scene: Scene, params: Params) -> None:
    weak, sam_model = simulate_weak_label(scene.labels, params.weak_labels), sesam.load_sam("superpixels")
    result = sesam.pseudo_label(scene.image, weak, sam_model, params={"sampling": {"num_points": 2}})
    assert {len(component.points or ()) for component in result.components} == {2}
    result = sesam.pseudo_label(scene.image, weak, sam_model, params={"sam": {"enabled": False}})
    assert np.array_equal(result.labels, weak)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, r"image is \(4, 4\) uint8; expected \(4, 5, 3\) uint8"),
        ({"weak_label": np.zeros((4, 5))}, r"weak_label is \(4, 5\) float64; expected \(4, 5\) uint8"),
        ({"predictions": (np.zeros((4, 5), np.uint8), np.zeros((4, 5)))}, "predictions is"),
        ({"params": {"sampling": {"points": 3}}}, r"sampling\.points: unknown key"),
        ({"round_name": "r9"}, "no entry 'r9'"),
        ({"predictions": (np.zeros((4, 5), np.uint8),)}, "predictions are a pair: classes and confidence"),
        (
            {"image": np.zeros((4, 500, 3), np.uint8), "weak_label": np.full((4, 500), 255, np.uint8)},
            "image has 500x4 pixels, which is too narrow for SAM",
        ),
        (
            {"params": {"sam": {"model": "sam3"}, "sampling": {"prompt_type": "concept"}}},
            r"This SAM takes no concepts; sampling\.prompt_type is concept",
        ),
    ],
)
def test_wrong_arguments_are_reported(changes: dict, message: str) -> None:
    arguments = {"image": np.zeros((4, 5, 3), np.uint8), "weak_label": np.full((4, 5), 255, np.uint8)}
    with pytest.raises(SesamError, match=message):
        sesam.pseudo_label(**{"sam_model": sesam.load_sam("superpixels"), **arguments, **changes})


def test_import_sesam_does_not_import_torch() -> None:
    code = "import sesam, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    result = namespace["result"]
    assert isinstance(result, sesam.PseudoLabel) and (result.labels != 255).mean() > 0.5
    assert NOTEBOOK.stat().st_size < 300_000
