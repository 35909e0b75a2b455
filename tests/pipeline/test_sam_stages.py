"""The stages embed and sam_masks: killed and resumed, with worker processes as on a GPU, without a cache."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from itertools import count
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from conftest import ROOT, edit_params, write_params
from PIL import Image

from sesam.artifacts.atomic_io import read_json, sha256, write_json
from sesam.artifacts.manifest import Dataset, ImageRecord
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.execution import pipeline
from sesam.geometry.rle import mask_to_rle
from stages import embed, sam_masks

IMAGES = 16


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with IMAGES scenes and for each four prompts, ready for sam_masks r1."""
    write_params(tmp_path, "demo")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bundled_sam.pth").symlink_to(ROOT / "models/bundled_sam.pth")
    rng, items = np.random.default_rng(0), []
    scene = draw_scene(3).image
    for k in range(IMAGES):
        image = np.roll(scene, 5 * k, axis=1)
        path = tmp_path / f"{k}.png"
        Image.fromarray(image).save(path)
        height, width = image.shape[:2]
        points = [rng.integers(0, (width, height), (5, 2)).tolist() for _ in range(4)]
        rle = mask_to_rle(np.ones((height, width), bool))
        components = [{"number": n, "class": 0, "rle": rle, "points": several} for n, several in enumerate(points, 1)]
        document = {"id": str(k), "height": height, "width": width, "prompt": "points", "components": components}
        write_json(tmp_path / f"data/rounds/r1/prompts/{k}.json", document)
        items.append(ImageRecord(str(k), path.name, height, width, sha256(path)))
    write_json(tmp_path / "data/embeddings.json", {})  # as sam_masks depends on it; embed would write it
    Dataset("scenes", ("a", "b"), ((0, 0, 0), (9, 9, 9)), tuple(items), ()).save(tmp_path / "data/dataset")
    return tmp_path


def masks_in(folder: Path, file: int = 0, moved: bool = False) -> None:
    """The stage in a process of its own, killed at its `file`-th file: just before that has its name, or just after."""
    lock, number, replace = threading.Lock(), count(1), Path.replace

    def replace_or_die(path: Path, target: Path) -> Path:
        with lock:  # no other thread finishes a file meanwhile
            if next(number) == file:
                if moved:
                    replace(path, target)
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

    Path.replace = replace_or_die  # in this process alone
    os.chdir(folder)
    sys.argv = ["sam_masks", "r1"]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sam_masks.main()


UNFINISHED = ".masks.partial"


def outputs(folder: Path, name: str = "masks") -> dict[str, bytes]:
    made = folder / "data/rounds/r1" / name
    if name == UNFINISHED or not made.exists():
        return {path.name: path.read_bytes() for path in made.glob("[0-9]*.json")}
    with ZipFile(made / "files-0000.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def times(folder: Path) -> dict[str, int]:
    """When each of the unfinished outputs was made."""
    found = outputs(folder, UNFINISHED)
    return {name: (folder / "data/rounds/r1" / UNFINISHED / name).stat().st_mtime_ns for name in found}


def test_killed_at_ten_moments(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    context = multiprocessing.get_context("forkserver")  # imports once, then forks in no time
    context.set_forkserver_preload(["stages.sam_masks"])
    uninterrupted = workspace.parent / "uninterrupted"
    shutil.copytree(workspace, uninterrupted, symlinks=True)
    process = context.Process(target=masks_in, args=(uninterrupted,))
    process.start()
    process.join()
    expected = outputs(uninterrupted)
    assert process.exitcode == 0 and len(expected) == IMAGES

    # files that the ten begin and finish: 25 of 33, an embedding and masks for each image, and what they are made of
    moments, written = [(file, moved) for file in range(1, 6) for moved in (False, True)], {}
    for file, moved in np.random.default_rng(0).permutation(moments):
        process = context.Process(target=masks_in, args=(workspace, file, moved))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert moved or list((workspace / "data").rglob(".tmp-*"))
        assert outputs(workspace, UNFINISHED).items() <= expected.items()  # whole files only
        assert not (workspace / "data/rounds/r1/masks").exists()
        assert written.items() <= times(workspace).items()  # and what was finished is not made again
        written = times(workspace)
    assert 0 < len(written) < IMAGES
    process = context.Process(target=masks_in, args=(workspace,))
    process.start()
    process.join()
    assert outputs(workspace) == expected
    leftovers = list((workspace / "data").rglob(".tmp-*"))
    assert leftovers == []


def test_no_room_for_embeddings(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["sam_masks", "r1"])
    edit_params(workspace, runtime__embedding_cache_gb=0.001)
    embed.main()
    assert (
        "16 embeddings of 0.41 MB, 0.0066 GB, are more than runtime.embedding_cache_gb (0.001)"
        in capsys.readouterr().out
    )
    sam_masks.main()
    without = outputs(workspace)
    assert list((workspace / "data/embeddings").rglob("*.npz")) == []

    edit_params(workspace, runtime__embedding_cache_gb=1)
    shutil.rmtree(workspace / "data/rounds/r1/masks")
    embed.main()
    assert len(list((workspace / "data/embeddings").rglob("*.npz"))) == IMAGES
    sam_masks.main()
    assert outputs(workspace) == without
    assert read_json(Path("data/embeddings.json"))["images"].keys() == {str(k) for k in range(IMAGES)}


def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of five."""
    load = sam_masks.load_segmenter

    def segmenter(params):
        made = load(params)
        made.images.number = 5
        return made

    monkeypatch.setattr(sam_masks, "load_segmenter", segmenter)
    monkeypatch.setattr(sam_masks, "batch_size", lambda _: 5)


def test_worker_processes_and_batches(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["sam_masks", "r1"])
    in_batches(monkeypatch)
    edit_params(workspace, runtime__num_workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_with_threads", pipeline._with_workers)
        sam_masks.main()
    expected = outputs(workspace)
    assert len(expected) == IMAGES
    shutil.rmtree(workspace / "data/rounds/r1/masks")
    edit_params(workspace, runtime__num_workers=2)
    sam_masks.main()
    assert outputs(workspace) == expected

    shutil.rmtree(workspace / "data/embeddings")
    (workspace / "5.png").write_bytes(b"torn")
    for way in (pipeline._with_threads, pipeline._with_workers):
        monkeypatch.setattr(pipeline, "_with_threads", way)
        with pytest.raises(SesamError, match=r"5\.png"):
            sam_masks.main()
        assert outputs(workspace) == expected  # what stood there before stays


def killed_at_three(k: int) -> int:
    if k == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return k


def test_a_reader_that_is_killed_is_told() -> None:
    steps = pipeline.PipelineSteps(killed_at_three, lambda items: [(k,) for k in items], int, torch.device("cpu"))
    with pytest.raises(SesamError, match=r"reads files has ended.*fewer than 2 runtime\.workers"):
        list(pipeline._with_workers([[k] for k in range(6)], steps, 2))


def test_the_first_error_ends_the_work() -> None:
    def compute(items: list[int]) -> list[tuple]:
        if 3 in items:
            raise SesamError("three")
        return [(item,) for item in items]

    written: list[int] = []
    steps = pipeline.PipelineSteps(int, compute, written.append, torch.device("cpu"))
    with pytest.raises(SesamError, match="three"):
        list(pipeline.iter_results([[k] for k in range(100)], steps, 2))
    assert {0, 1, 2} <= set(written) and len(written) < 20
    assert pipeline.pending_batches([1, 2, 3, 4, 5], {5, 2}.__contains__, 2) == [[1, 2], [5]]
