"""A training in two processes on a CPU, over Gloo: the samples and the loss of one; interrupted, the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, edit_params
from unit.test_segmentation import data, one_thread_and_seed, task  # noqa: F401

from sesam.errors import SesamError
from sesam.params import Runtime, load_params
from sesam.presets import load_preset
from sesam.segmentation import training
from sesam.segmentation.launch import launch
from sesam.segmentation.loss import three_source_loss
from stages import train_student

RUNTIME = load_preset(ROOT / "presets/demo.yaml").runtime
ITERATIONS = 30


def run(program: str, processes: int) -> subprocess.CompletedProcess[str]:
    """A Python program in processes, in the current folder, one thread each."""
    Path("program.py").write_text(program)
    command = [sys.executable, "-m", "sesam.segmentation.launch", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, "program.py"], env=environment, capture_output=True, text=True, check=False)


HALVES = """
import torch
import torch.distributed as processes
from sesam.errors import SesamError
from sesam.segmentation.loss import three_source_loss
from sesam.segmentation.launch import joined
with joined(torch.device("cpu")):
    rank = processes.get_rank()
    logits, labels, sources, weights = torch.load("batch.pt")
    part = slice(2 * rank, 2 * rank + 2)
    mine = logits[part].requires_grad_()
    loss, means = three_source_loss(mine, labels[part], sources[part], weights)
    loss.backward()
    torch.save((loss.detach(), means.detach(), mine.grad), f"{rank}.pt")
    processes.barrier()
    if rank == 1:
        raise SesamError("this label is wrong")
    processes.barrier()
"""


def test_the_loss_of_two_processes_is_that_of_the_batch_and_an_error_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one of them has more labeled pixels of a source than the other, or all."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (4, 8, 8), generator=generator)
    sources = torch.randint(0, 4, (4, 8, 8), generator=generator)
    labels[0, :6], sources[2:] = 255, torch.where(sources[2:] == 2, 1, sources[2:])
    weights = torch.tensor([1.0, 0.5, 0.3])
    torch.save((logits, labels, sources, weights), "batch.pt")
    done = run(HALVES, 2)
    # the error of one ends all, with its message and no other
    assert done.returncode == 1 and "error: this label is wrong" in done.stderr and "Traceback" not in done.stderr
    logits.requires_grad_()
    loss, means = three_source_loss(logits, labels, sources, weights)
    loss.backward()
    parts = [torch.load(f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss.detach())
    torch.testing.assert_close(sum(part[1] for part in parts) / 2, means.detach())
    torch.testing.assert_close(torch.cat([part[2] for part in parts]) / 2, logits.grad)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from stages import train_student
from stages.segmentation import hooks
from sesam.segmentation.data import TrainingSamples
from sesam.segmentation.launch import launched
hooks.CHECKPOINT_SECONDS = 0
seed, sample = hooks.Record.before_train_iter, TrainingSamples.__getitem__
def kill_the_stage(self, runner, batch_idx, data_batch=None):
    if batch_idx == 13:
        if os.environ["RANK"] == "0":
            os.kill(int(os.environ["STAGE"]), signal.SIGKILL)
        time.sleep(3600)
    seed(self, runner, batch_idx, data_batch)
def noted(self, t):
    with Path("seen-" + os.environ["RANK"]).open("a") as file:
        print(t, file=file)
    return sample(self, t)
hooks.Record.before_train_iter, TrainingSamples.__getitem__ = kill_the_stage, noted
if launched():
    Path("process-" + os.environ["RANK"]).write_text(str(os.getpid()))
    sys.argv = ["train_student", "r1"]
    train_student.main()
else:
    os.environ["STAGE"] = str(os.getpid())
    from sesam.params import load_params
    from sesam.segmentation.launch import launch
    launch(load_params().runtime, "program", [])
"""


def ended(process: int) -> bool:
    """Whether a process ends within five minutes; a zombie has ended."""
    for _ in range(3000):
        state = Path(f"/proc/{process}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_two_processes_train_as_one_does_and_resume(data, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    tiny = {"iterations": ITERATIONS, "batch": 4, "crop": [32, 40], "learning_rate": 0.02}
    changes = {f"student__{key}": value for key, value in tiny.items()}
    edit_params(Path(), network__base_channels=4, network__head_channels=8, runtime__device="cpu", **changes)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def found() -> tuple[bytes, list[float]]:
        log = Path("metrics/training/r1/plots/metrics/loss.tsv").read_text().splitlines()[1:]
        return Path("models/r1/model.pth").read_bytes(), [float(line.split("\t")[1]) for line in log]

    def trained() -> tuple[bytes, list[float]]:
        command = [sys.executable, "-m", "stages.train_student", "r1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"models/r1: {ITERATIONS} iterations in ") == 1
        return found()

    monkeypatch.setattr(sys, "argv", ["train_student", "r1"])
    train_student.main()
    _, one = found()
    edit_params(Path(), runtime__num_gpus=2)
    weights, two = trained()
    assert len(one) == len(two) == ITERATIONS // 10
    # each normalizes by its own half of a batch, and drops out by itself: the same but for that
    assert two == pytest.approx(one, rel=0.25) and one[-1] < one[0] and two[-1] < two[0]

    for folder in ("models/student", "metrics/training"):
        shutil.rmtree(folder)
    Path("program.py").write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path.cwd()}")
    stage = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, check=False)
    assert stage.returncode == -signal.SIGKILL and "Traceback" not in stage.stderr, stage.stderr
    # nothing goes on by itself: its processes hold the unfinished work, and the GPUs
    assert all(ended(int(Path(f"process-{rank}").read_text())) for rank in range(2))
    seen = [{int(t) for t in Path(f"seen-{rank}").read_text().split()} for rank in range(2)]
    assert all(t % 4 // 2 == rank for rank in range(2) for t in seen[rank])  # halves of every batch of four
    assert min(map(max, seen)) >= 4 * 12
    assert Path("models/.work/student-r1/checkpoint.pth").exists() and not Path("models/student").exists()
    assert trained() == (weights, two)


def test_what_cannot_be_launched_is_told(data, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    slurm = Runtime.model_validate(RUNTIME.model_dump() | {"processes": 2, "launcher": "srun"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SesamError, match=r"runtime\.launcher is srun, but this machine has no Slurm"):
        launch(slurm, "stages.train_student", ["r1"])


def test_srun_gives_a_process_the_jobs_cores(data, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    program = tmp_path / "bin/srun"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$SRUN_CPUS_PER_TASK $@" > said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    launch(
        Runtime.model_validate(RUNTIME.model_dump() | {"processes": 2, "launcher": "srun"}), "stages.train_student", []
    )
    said = Path("said").read_text().split()
    assert said[:2] == ["8", "--ntasks=2"] and said[-2:] == ["-m", "stages.train_student"]


def test_a_batch_that_cannot_be_shared_is_told(data, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(training, "get_dist_info", lambda: (0, 3))
    params = load_params()
    with pytest.raises(SesamError, match=r"student\.batch is 8, which 3 processes cannot share"):
        training.train(task(params), params)
    monkeypatch.setattr(training, "get_dist_info", lambda: (0, 8))
    with pytest.raises(SesamError, match=r"student\.batch must be 2 or more for each of runtime\.processes on a CPU"):
        training.train(task(params), params)
