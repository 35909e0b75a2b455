"""Training in two processes on a CPU, over Gloo: the samples and loss of one process; interrupted, the same bytes."""

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
from unit.test_segmentation import manifest, one_thread_and_seed, task  # noqa: F401

from sesam.errors import SesamError
from sesam.execution.launch import launch
from sesam.params import load_params
from sesam.presets import load_preset
from sesam.segmentation import training
from sesam.segmentation.loss import three_source_loss
from stages import train_student

ITERATIONS = 20


HALVES = """
import torch
import torch.distributed as processes
from sesam.errors import SesamError
from sesam.segmentation.loss import three_source_loss
from sesam.execution.launch import process_group
with process_group(torch.device("cpu")):
    rank = processes.get_rank()
    logits, labels, sources, weights = torch.load("batch.pt")
    share = slice(2 * rank, 2 * rank + 2)
    half = logits[share].requires_grad_()
    loss, means = three_source_loss(half, labels[share], sources[share], weights)
    loss.backward()
    torch.save((loss.detach(), means.detach(), half.grad), f"{rank}.pt")
    processes.barrier()
    if rank == 1:
        raise SesamError("this label is wrong")
    processes.barrier()
"""


@pytest.mark.long
def test_two_processes_have_the_loss_of_the_batch_and_end_on_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (4, 8, 8), generator=generator)
    sources = torch.randint(0, 5, (4, 8, 8), generator=generator)
    labels[0, :6], sources[2:] = 255, torch.where(sources[2:] == 2, 1, sources[2:])
    weights = torch.tensor([1.0, 0.5, 0.3, 0.8])
    torch.save((logits, labels, sources, weights), "batch.pt")
    Path("halves.py").write_text(HALVES)
    command = [sys.executable, "-m", "sesam.execution.launch", "--standalone", "--nproc-per-node=2", "halves.py"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # one error ends both processes, and only its message is shown
    assert done.returncode == 1 and "error: this label is wrong" in done.stderr and "Traceback" not in done.stderr
    logits.requires_grad_()
    loss, means = three_source_loss(logits, labels, sources, weights)
    loss.backward()
    losses, source_means, gradients = zip(*(torch.load(f"{rank}.pt") for rank in range(2)), strict=True)
    torch.testing.assert_close(sum(losses) / 2, loss.detach())
    torch.testing.assert_close(sum(source_means) / 2, means.detach())
    torch.testing.assert_close(torch.cat(gradients) / 2, logits.grad)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from stages import train_student
from sesam.segmentation import hooks
from sesam.segmentation.data import TrainingDataset
from sesam.execution.launch import is_worker_process, launch
from sesam.params import load_params
hooks.CHECKPOINT_SECONDS = 0
seed, sample = hooks.LoggingHook.before_train_iter, TrainingDataset.__getitem__
def kill_the_stage(self, runner, batch_idx, data_batch=None):
    if batch_idx == 13:
        if os.environ["RANK"] == "0":
            os.kill(int(os.environ["STAGE"]), signal.SIGKILL)
        time.sleep(3600)
    seed(self, runner, batch_idx, data_batch)
def note(self, t):
    with Path("seen-" + os.environ["RANK"]).open("a") as file:
        print(t, file=file)
    return sample(self, t)
hooks.LoggingHook.before_train_iter, TrainingDataset.__getitem__ = kill_the_stage, note
if is_worker_process():
    Path("process-" + os.environ["RANK"]).write_text(str(os.getpid()))
    sys.argv = ["train_student", "r1"]
    train_student.main()
else:
    os.environ["STAGE"] = str(os.getpid())
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


@pytest.mark.long
@pytest.mark.usefixtures("manifest")
def test_two_processes_train_as_one_does_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"max_iters": ITERATIONS, "batch_size": 4, "crop_size": [32, 40], "lr": 0.02}
    changes = {f"schedule__{key}": value for key, value in tiny.items()}
    edit_params(Path(), network__base_channels=4, network__head_channels=8, runtime__device="cpu", **changes)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def outputs() -> tuple[bytes, list[float]]:
        log = Path("metrics/training/r1/plots/metrics/loss.tsv").read_text().splitlines()[1:]
        return Path("models/r1/model.pth").read_bytes(), [float(line.split("\t")[1]) for line in log]

    def run_stage() -> tuple[bytes, list[float]]:
        command = [sys.executable, "-m", "stages.train_student", "r1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"models/r1: {ITERATIONS} iterations in ") == 1
        return outputs()

    monkeypatch.setattr(sys, "argv", ["train_student", "r1"])
    train_student.main()
    _, losses = outputs()
    edit_params(Path(), runtime__training_gpus=2)
    weights, losses_of_two = run_stage()
    assert len(losses) == len(losses_of_two) == ITERATIONS // 10
    # each process normalizes its own half of a batch and has its own dropout: the same but for that
    assert losses_of_two == pytest.approx(losses, rel=0.25)
    assert losses[-1] < losses[0] and losses_of_two[-1] < losses_of_two[0]

    for folder in ("models/r1", "metrics/training"):
        shutil.rmtree(folder)
    Path("program.py").write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{Path.cwd()}")
    stage = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, check=False)
    assert stage.returncode == -signal.SIGKILL and "Traceback" not in stage.stderr, stage.stderr
    # no process is left, which would hold the unfinished training and the GPUs
    assert all(ended(int(Path(f"process-{rank}").read_text())) for rank in range(2))
    seen = [{int(t) for t in Path(f"seen-{rank}").read_text().split()} for rank in range(2)]
    assert all(t % 4 // 2 == rank for rank in range(2) for t in seen[rank])  # halves of every batch of four
    assert min(map(max, seen)) >= 4 * 12
    assert Path("models/.work/student-r1/checkpoint.pth").exists() and not Path("models/r1").exists()
    assert run_stage() == (weights, losses_of_two)


SRUN = load_preset(ROOT / "presets/demo.yaml").runtime.model_copy(update={"training_gpus": 2, "launcher": "srun"})


def test_srun_without_slurm_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SesamError, match=r"runtime\.launcher is srun, but this machine has no Slurm"):
        launch(SRUN, "stages.train_student", ["r1"])


def test_srun_gives_each_process_the_cores_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "srun"
    program.write_text(f'#!/bin/sh\necho "$SRUN_CPUS_PER_TASK $@" > {tmp_path}/arguments\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    launch(SRUN, "stages.train_student", [])
    arguments = Path(tmp_path / "arguments").read_text().split()
    assert arguments[:2] == ["8", "--ntasks=2"] and arguments[-2:] == ["-m", "stages.train_student"]


@pytest.mark.parametrize(
    ("processes", "message"), [(3, "which 3 processes cannot share"), (8, "it must be at least 2 for each")]
)
@pytest.mark.usefixtures("manifest")
def test_a_batch_that_processes_cannot_share_is_refused(
    processes: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "get_dist_info", lambda: (0, processes))
    with pytest.raises(SesamError, match=rf"the student's batch_size is 8[,;] {message}"):
        training.train(task(load_params()), load_params())
