"""The work on images on Ray: the bytes of local workers, killed workers, failed images."""

import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, edit_params
from pipeline.test_sam_stages import outputs, workspace  # noqa: F401
from ray_work import divide_by_zero, fail_or_kill_once, kill_always, square, steps

from sesam.errors import SesamError
from sesam.execution import ray_backend
from sesam.execution.batches import run_batches
from sesam.execution.parallel import map_images
from sesam.params import Runtime
from stages import sam_masks

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.long
RUNTIME = Runtime(device="cpu", backend="ray", num_workers=2)


@pytest.fixture(scope="module", autouse=True)
def shut_down_at_end() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in this process's folder, and can import the tests' functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 starves them on a busy machine
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def written() -> set[int]:
    return {int(path.name.split("-")[1]) for path in Path().glob("written-*")}


EXPECTED = [k * k for k in range(40) if k % 10 != 5]
FAILED = r"4 images failed:\n  item 5 is wrong\n  item 15 is wrong"


def test_map_images() -> None:
    collected: list[int] = []
    with pytest.raises(SesamError, match=FAILED):
        map_images(fail_or_kill_once, range(40), RUNTIME, "kill", collected.append)
    assert collected == EXPECTED and Path("killed").exists()  # its chunk was done again
    with pytest.raises(ZeroDivisionError):
        map_images(divide_by_zero, range(4), RUNTIME, "divide")


def test_run_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, collected = [[k, k + 1] for k in range(0, 40, 2)], []
    with pytest.raises(SesamError, match=FAILED):
        run_batches(batches, partial(steps, fail_or_kill_once), RUNTIME, "kill", collected.append)
    assert collected == EXPECTED and written() == set(EXPECTED)
    assert 2 <= len(list(Path().glob("loaded-*"))) <= 3
    monkeypatch.setattr(ray_backend, "MAX_TRIES", 1)
    with pytest.raises(SesamError, match="Ray lost 1 workers at the images from 4 on"):
        run_batches(batches[2:3], partial(steps, kill_always), RUNTIME, "kill")
    with monkeypatch.context() as patch, pytest.raises(SesamError, match=r"Ray's workers do not start \(.*elsewhere"):
        patch.setattr(Path, "cwd", lambda: Path("/elsewhere"))  # as on a node that lacks the checkout
        run_batches([[1]], partial(steps, square), RUNTIME, "nowhere")


def test_masks_are_the_bytes_of_local_workers(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    sam_masks.main()
    local = outputs(workspace)
    shutil.rmtree(workspace / "data/rounds/r1/masks")
    edit_params(workspace, runtime__backend="ray")
    monkeypatch.delattr("sesam.execution.batches._with_threads")  # of this process: nothing is computed here
    sam_masks.main()
    assert outputs(workspace) == local


def test_missing_ray_and_missing_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(SesamError, match=r"runtime\.backend is ray, which is not installed"):
            ray_backend.connect(RUNTIME)
    with pytest.raises(SesamError, match="Ray knows of no GPU"):
        ray_backend.has_gpus(RUNTIME.model_copy(update={"device": "cuda"}))
