"""A run with known answers: a data set of halves, what two rounds made of it, and networks that are functions."""

import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import edit_params, write_params
from PIL import Image

from sesam.artifacts import component_records
from sesam.artifacts.atomic_io import sha256, write_json, write_text
from sesam.artifacts.component_records import Candidate, Component, Outcome, Selected
from sesam.artifacts.image_io import write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, SOURCE_PALETTE, WEAK
from sesam.artifacts.supervision import save_supervision
from sesam.geometry.rle import mask_to_rle
from sesam.params import Params, load_params
from sesam.paths import METRICS, training_log_dir
from sesam.segmentation import inference
from stages import card, evaluate, evaluate_labels, panels, report, summarize

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90))
SHAPE = (8, 12)
PHOTO = np.full((*SHAPE, 3), 128, np.uint8)
BOUNDARIES = {"baseline": 3, "r1": 5, "r2": 6}  # of what the networks predict


def left_to(column: int) -> np.ndarray:
    """A prediction that puts the boundary between the classes at `column`."""
    return (np.ones(SHAPE, np.uint8) * (np.arange(SHAPE[1]) >= column)).astype(np.uint8)


FINE = left_to(6)
FINE[0] = 255


def make_workspace() -> tuple[Manifest, Params]:
    """In the current folder, the artifacts of all stages before the evaluation."""
    write_params(Path(), "demo")
    rounds = {"r1": {"teacher": "none", "fill_confident": False}, "r2": {"teacher": "r1", "fill_confident": False}}
    edit_params(Path(), runtime__num_workers=1, rounds=rounds)
    params = load_params()
    records: dict[str, tuple[ImageRecord, ...]] = {"train": (), "val": ()}
    for split, ids in (("train", ("town/0", "town/1", "2", "3")), ("val", ("town/0", "1"))):
        for i in ids:
            path = Path(f"images/{split}/{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PHOTO).save(path)
            write_label(Path(f"data/fine/{split}/{i}.png"), FINE, PALETTE)
            records[split] += (ImageRecord(i, str(path), *SHAPE, sha256(path)),)
    write_json(Path("data/embeddings.json"), {"engine": "0" * 64, "weights": "f" * 64, "images": {}})
    for record in records["train"]:
        weak = np.full(SHAPE, 255, np.uint8)
        weak[4, 1], weak[4, 10] = 0, 1
        write_label(Path(f"data/weak/{record.id}.png"), weak, PALETTE)
        for name, predicted in (("r1", left_to(3)), ("r2", left_to(5))):
            confidence = np.where(np.arange(12) < 4, np.full(SHAPE, 255, np.uint8), np.uint8(200))
            sources = np.full(SHAPE, NONE, np.uint8)
            sources[:, :4], sources[:, 8:], sources[weak != 255] = CONFIDENT, SAM, WEAK
            merged = np.where(sources == NONE, np.uint8(255), predicted)
            rounds = Path("data/rounds", name)
            write_label(rounds / f"teacher_predictions/labels/{record.id}.png", predicted, PALETTE)
            write_gray(rounds / f"teacher_predictions/confidence/{record.id}.png", confidence)
            columns = np.arange(12) + np.zeros((8, 1))
            large, small = mask_to_rle(columns >= 8), mask_to_rle(columns >= 10)  # a weak label is in both
            components = [Component(1, 1, large), Component(2, 0, small), Component(3, 0, mask_to_rle(weak == 0))]
            candidates = {k: [Candidate(0.9, rle)] for k, rle in enumerate((large, small, large), 1)}
            selected = [
                Selected(1, 1, 0, 0.9, large, Outcome.KEPT),
                Selected(2, 0, 0, 0.9, small, Outcome.KEPT),
                Selected(3, 0, None, None, components[2].rle, Outcome.LOW_COVERAGE),
            ]
            component_records.write_prompts(rounds / f"prompts/{record.id}.json", record, "mask", components)
            component_records.write_candidates(rounds / f"masks/{record.id}.json", record, candidates)
            component_records.write_selected(rounds / f"selected/{record.id}.json", record, selected)
            write_label(Path(f"data/pseudo_labels/{name}/labels/{record.id}.png"), merged, PALETTE)
            write_label(Path(f"data/pseudo_labels/{name}/sources/{record.id}.png"), sources, SOURCE_PALETTE)
    manifest = Manifest("halves", ("left", "right, far", "nowhere", "never"), PALETTE, records["train"], records["val"])
    manifest.save()
    save_supervision(dict.fromkeys((record.id for record in manifest.train), "scribble"))
    return manifest, params


def evaluate_everything(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages that evaluate and draw, with networks that predict BOUNDARIES."""

    def run(stage: ModuleType, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["stage", *arguments])
        stage.main()

    def predict(network: Path, *_: object) -> tuple[np.ndarray, np.ndarray]:
        return left_to(BOUNDARIES[network.name]), np.full(SHAPE, 255, np.uint8)

    for name in params.rounds:
        run(evaluate_labels, name)
    monkeypatch.setattr(inference, "load_network", lambda network, device, classes: network)
    monkeypatch.setattr(inference, "predict", predict)
    for name in BOUNDARIES:
        write_text(training_log_dir(name) / "plots/metrics/loss.tsv", "step\tloss\n10\t0.5\n")
        run(evaluate, name)
    write_text(METRICS / "annotations.json", '{"boxes": 1, "points without a pixel": 2, "shapes": 9}')
    for name in params.rounds:
        run(card, name)
        run(panels, name)
    run(summarize)
    run(report)


@cache
def _evaluated_run() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.name)
        evaluate_everything(make_workspace()[1], patch)
    return folder


def copy_evaluated_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Params]:
    """The whole run, made once per process, in `folder`, which becomes the current one."""
    shutil.copytree(_evaluated_run().name, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return Manifest.load(), load_params()
