"""The stages embed and sam_masks: killed and resumed, with worker processes, without a cache, without SAM."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from functools import partial
from itertools import count
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from conftest import ROOT, edit_params, write_params
from PIL import Image

from sesam.artifacts.atomic_io import TMP_PREFIX, read_json, sha256, write_json
from sesam.artifacts.component_records import Component, write_prompts
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.execution import batches
from sesam.geometry.rle import mask_to_rle
from sesam.sam import checkpoints, inference
from sesam.sam.registry import MODELS
from sesam.sam.sam_model import SamModel
from stages import embed, sam_masks

IMAGES = 12


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with IMAGES scenes and four prompts per image, ready for embed and sam_masks r1."""
    write_params(tmp_path, "demo")
    rng, records, scene = np.random.default_rng(0), [], draw_scene(3).image
    height, width = scene.shape[:2]
    rle = mask_to_rle(np.ones((height, width), bool))
    for k in range(IMAGES):
        path = tmp_path / f"{k}.png"
        Image.fromarray(np.roll(scene, 5 * k, axis=1)).save(path)
        records.append(ImageRecord(str(k), path.name, height, width, sha256(path)))
        points = [[(x, y) for x, y in rng.integers(0, (width, height), (5, 2)).tolist()] for _ in range(4)]
        components = [Component(n, 0, rle, points=p) for n, p in enumerate(points, 1)]
        write_prompts(tmp_path / f"data/rounds/r1/prompts/{k}.json", records[k], "points", components)
    write_json(tmp_path / "data/embeddings.json", {})  # a dependency of sam_masks
    Manifest("scenes", ("a", "b"), ((0, 0, 0), (9, 9, 9)), tuple(records), ()).save(tmp_path / "data/dataset")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sam_masks", "r1"])
    return tmp_path


def run_and_die(folder: Path, file: int = 0, moved: bool = False) -> None:
    """Run sam_masks; SIGKILL just before its `file`-th file is moved to its place, or just after."""
    lock, number, replace = threading.Lock(), count(1), Path.replace

    def replace_or_die(path: Path, target: Path) -> Path:
        with lock:  # no other thread finishes a file meanwhile
            if next(number) == file:
                if moved:
                    replace(path, target)
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

    Path.replace = replace_or_die  # in this process only
    os.chdir(folder)
    sys.argv = ["sam_masks", "r1"]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sam_masks.main()


def outputs(folder: Path) -> dict[str, bytes]:
    with ZipFile(folder / "data/rounds/r1/masks/files-0000.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def unfinished(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content of finished files of an unfinished stage, and when they were written."""
    paths = (folder / "data/rounds/r1/.masks.partial").glob("[0-9]*.json")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


@pytest.mark.long
def test_killed_runs_are_resumed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context("forkserver")  # imports once, then forks
    context.set_forkserver_preload(["stages.sam_masks"])

    def run(*arguments: object) -> int:
        process = context.Process(target=run_and_die, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    uninterrupted = workspace.parent / "uninterrupted"
    shutil.copytree(workspace, uninterrupted)
    assert run(uninterrupted) == 0
    expected = outputs(uninterrupted)
    assert len(expected) == IMAGES

    # together they finish 16 of 25 files: an embedding and masks per image, and the fingerprint
    moments, written = [(file, moved) for file in range(1, 5) for moved in (False, True)], {}
    for file, moved in np.random.default_rng(0).permutation(moments):
        assert run(workspace, file, moved) == -signal.SIGKILL
        assert moved or list((workspace / "data").rglob(f"{TMP_PREFIX}*"))
        assert not (workspace / "data/rounds/r1/masks").exists()
        assert written.items() <= unfinished(workspace).items()  # finished files are not written again
        written = unfinished(workspace)
        assert all(content == expected[name] for name, (content, _) in written.items())  # complete files only
    assert 0 < len(written) < IMAGES
    assert run(workspace) == 0 and outputs(workspace) == expected
    assert list((workspace / "data").rglob(f"{TMP_PREFIX}*")) == []


def test_embeddings_larger_than_the_cache_are_not_kept(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    edit_params(workspace, runtime__embedding_cache_gb=0.001)
    embed.main()
    line = "12 embeddings of 0.41 MB, 0.0049 GB, are more than runtime.embedding_cache_gb (0.001)"
    assert line in capsys.readouterr().out
    sam_masks.main()
    without_cache = outputs(workspace)
    assert list((workspace / "data/embeddings").rglob("*.npz")) == []

    edit_params(workspace, runtime__embedding_cache_gb=1)
    shutil.rmtree(workspace / "data/rounds/r1/masks")
    embed.main()
    assert len(list((workspace / "data/embeddings").rglob("*.npz"))) == IMAGES
    sam_masks.main()
    assert outputs(workspace) == without_cache
    assert read_json(Path("data/embeddings.json"))["images"].keys() == {str(k) for k in range(IMAGES)}


def test_without_sam_no_model_is_loaded(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(inference, "load_sam_from_params")
    monkeypatch.delattr(checkpoints, "download")
    edit_params(workspace, sam__enabled=False, sam__model="vit_h")
    embed.main()
    sam_masks.main()
    assert read_json(Path("data/embeddings.json")) == {"engine": "", "weights": "", "images": {}}
    masks = [json.loads(document) for document in outputs(workspace).values()]
    assert len(masks) == IMAGES and all(document["components"] == [] for document in masks)
    assert not Path("data/embeddings").exists()


def test_a_checkpoint_is_hashed_once_per_stage(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = workspace / "custom.pth"
    shutil.copy(MODELS["bundled"].url, weights)
    edit_params(workspace, sam__checkpoint=str(weights), sam__sha256=sha256(weights))
    hashed = []
    monkeypatch.setattr(checkpoints, "sha256", lambda path: hashed.append(path) or sha256(path))
    embed.main()
    sam_masks.main()
    assert hashed == [weights, weights]


@pytest.mark.long
def test_worker_processes_and_batches_change_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(*arguments: object, device: str) -> batches.BatchSteps:
        return make_mask_steps(*arguments)._replace(device=torch.device(device))  # "cuda": with worker processes

    def sam_model(*arguments: object) -> SamModel:
        loaded = load(*arguments)
        loaded.image_batcher.batch_size = 5
        return loaded

    make_mask_steps, load, masks = inference.make_mask_steps, inference.load_sam_from_params, []
    monkeypatch.setattr(inference, "load_sam_from_params", sam_model)
    monkeypatch.setattr(sam_masks, "batch_size", lambda _: 5)
    for workers, device in ((1, "cuda"), (2, "cpu")):
        monkeypatch.setattr(sam_masks, "make_mask_steps", partial(steps, device=device))
        edit_params(workspace, runtime__num_workers=workers)
        shutil.rmtree(workspace / "data/rounds/r1/masks", ignore_errors=True)
        sam_masks.main()
        masks.append(outputs(workspace))
    assert len(masks[0]) == IMAGES and masks[0] == masks[1]

    shutil.rmtree(workspace / "data/embeddings")
    (workspace / "5.png").write_bytes(b"torn")
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(sam_masks, "make_mask_steps", partial(steps, device=device))
        with pytest.raises(SesamError, match=r"5\.png"):
            sam_masks.main()
        assert outputs(workspace) == masks[0]  # the earlier artifact stays


def test_a_killed_reader_is_reported() -> None:
    steps = batches.BatchSteps(signal.raise_signal, lambda items: [(0,) for _ in items], int, torch.device("cuda"))
    with pytest.raises(SesamError, match=r"fewer than 2 runtime\.num_workers"):
        list(batches.iter_results([[0], [0], [0], [signal.SIGKILL], [0], [0]], steps, 2))


def test_an_error_stops_the_pipeline() -> None:
    def compute(items: list[int]) -> list[tuple]:
        if 3 in items:
            raise SesamError("three")
        return [(item,) for item in items]

    written: list[int] = []
    steps = batches.BatchSteps(int, compute, written.append, torch.device("cpu"))
    with pytest.raises(SesamError, match="three"):
        list(batches.iter_results([[k] for k in range(100)], steps, 2))
    assert {0, 1, 2} <= set(written) and len(written) < 20
    assert batches.pending_batches([1, 2, 3, 4, 5], {5, 2}.__contains__, 2) == [[1, 2], [5]]
