"""The work on images on Ray: the same bytes as in local processes; workers that are killed; images that are bad."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from sesam.errors import SesamError
from sesam.execution import ray_backend as on_ray
from sesam.execution.parallel import map_images
from sesam.execution.pipeline import PipelineSteps, run_pipeline
from sesam.presets import load_preset

ray = pytest.importorskip("ray")
RUNTIME = load_preset(ROOT / "presets/demo.yaml").runtime.model_copy(
    update={"device": "cpu", "backend": "ray", "num_workers": 2}
)


@pytest.fixture(scope="module", autouse=True)
def one_cluster() -> Iterator[None]:
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workers find the tests' functions, and work in the folder of the one that asks them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def square(item: int) -> int:
    with Path(f"begun-{item}").open("a") as file:
        file.write("x")
    return item * item


def kill_once(item: int) -> int:
    """Kills its process at item 5, but for the second time."""
    if item == 5 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def kill_always(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def bad(item: int) -> int:
    if item % 10 == 5:
        raise SesamError(f"item {item} is bad")
    return square(item)


def wrong(item: int) -> int:
    raise ZeroDivisionError("wrong")


def steps(read) -> PipelineSteps:
    """Writes what `read` makes of an item to a file."""
    Path(f"loaded-{os.getpid()}").touch()

    def write(item: int) -> int:
        Path(f"written-{item}").write_text(str(item))
        return item

    return PipelineSteps(read, lambda loaded: [(one,) for one in loaded], write, torch.device("cpu"))


def written() -> set[int]:
    return {int(path.name.split("-")[1]) for path in Path().glob("written-*")}


SQUARES = [k * k for k in range(40)]


def test_one_function_over_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert map_images(square, range(40), RUNTIME, "square") == SQUARES
    assert all(Path(f"begun-{k}").read_text() == "x" for k in range(40))
    assert map_images(kill_once, range(40), RUNTIME, "kill") == SQUARES  # what was begun was done again
    monkeypatch.setattr(on_ray, "TRIES", 2)
    with pytest.raises(SesamError, match=r"Ray lost 2 workers over the images from \d on"):
        map_images(kill_always, range(40), RUNTIME, "kill")
    with pytest.raises(SesamError, match=r"4 images failed:\n  item 5 is bad\n  item 15 is bad"):
        map_images(bad, range(40), RUNTIME, "bad")
    with pytest.raises(ZeroDivisionError, match="wrong"):
        map_images(wrong, range(4), RUNTIME, "wrong")


def test_a_model_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, collected = [[k, k + 1] for k in range(0, 40, 2)], []
    run_pipeline(batches, partial(steps, kill_once), RUNTIME, "kill", collected.append)
    assert collected == SQUARES and written() == set(SQUARES)  # nothing missing, nothing double
    assert 2 <= len(list(Path().glob("loaded-*"))) <= 3
    with (
        monkeypatch.context() as patch,
        pytest.raises(SesamError, match="Ray lost 2 workers over the images from 4 on"),
    ):
        patch.setattr(on_ray, "TRIES", 2)
        run_pipeline(batches[2:3], partial(steps, kill_always), RUNTIME, "kill")

    for file in Path().glob("written-*"):
        file.unlink()
    with pytest.raises(SesamError, match="2 images failed:\n  item 5 is bad\n  item 15 is bad"):
        run_pipeline([[4, 5, 6, 15, 7]], partial(steps, bad), RUNTIME, "bad")
    assert written() == {16, 36, 49}
    monkeypatch.setattr(on_ray, "TRIES", 1)
    with monkeypatch.context() as patch, pytest.raises(SesamError, match=r"Ray's workers do not start \(.*elsewhere"):
        patch.setattr(Path, "cwd", lambda: Path("/elsewhere"))  # as on a node that lacks the checkout
        run_pipeline([[1]], partial(steps, square), RUNTIME, "nowhere")


def test_without_ray_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(SesamError, match=r"runtime\.engine is ray, which is not installed"):
            on_ray.connect(RUNTIME)
    with pytest.raises(SesamError, match="Ray knows of no GPU"):
        on_ray.has_gpus(RUNTIME.model_copy(update={"device": "cuda"}))
