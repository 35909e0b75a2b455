"""A training in several processes, one a GPU, by the launchers that mmengine knows: torchrun, Slurm's srun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.dist import init_dist

from stages.common.errors import SesamError
from stages.common.params import Runtime

BY_SRUN = "SESAM_BY_SRUN"  # set for the processes that `launch` starts: a whole Slurm job has srun's own variables


def launched() -> bool:
    """Whether this is one of a training's processes."""
    return "TORCHELASTIC_RUN_ID" in os.environ or BY_SRUN in os.environ


def launch(runtime: Runtime, module: str, arguments: Sequence[str]) -> None:
    """`python -m module arguments` in `runtime.processes` processes; SesamError if they cannot be, or one fails."""
    work = ["-m", module, *arguments]
    if runtime.launcher == "torchrun":
        one = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={runtime.processes}"]
        command, environment = [*one, *work], dict(os.environ)
    else:
        # which nodes and GPUs is for the Slurm job to say
        command = ["srun", f"--ntasks={runtime.processes}", "--kill-on-bad-exit=1", sys.executable, *work]
        environment = {**os.environ, BY_SRUN: "1"}
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
    except FileNotFoundError:
        raise SesamError(
            "params.yaml: runtime.launcher is srun, but this machine has no Slurm. Set it to torchrun."
        ) from None
    if code:
        raise SesamError(
            f"{' '.join(work[1:])} in {runtime.processes} processes failed: see above. Run again to go on."
        )


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """In a process that was launched: the group of all of them, over NCCL, or Gloo on CPUs."""
    if not launched():
        yield
        return
    if device.type == "cuda":
        init_dist("slurm" if BY_SRUN in os.environ else "pytorch", "nccl")
    elif BY_SRUN in os.environ:
        raise SesamError("params.yaml: runtime.launcher srun trains on GPUs, and this process has none. Take torchrun.")
    else:
        torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
