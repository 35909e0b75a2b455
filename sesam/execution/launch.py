"""Distributed training, one process per GPU, by the launchers that mmengine supports: torchrun and Slurm's srun.

`python -m sesam.execution.launch` is torchrun without its report of a failed process, which has printed its error.
"""

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from mmengine.dist import init_dist

from sesam.errors import SesamError
from sesam.params import Runtime

# set for the processes that `launch` starts; srun's own variables are also set in the rest of a Slurm job
STARTED_BY_SRUN = "SESAM_BY_SRUN"


def is_worker_process() -> bool:
    """Whether this is a process of a distributed training."""
    return "TORCHELASTIC_RUN_ID" in os.environ or STARTED_BY_SRUN in os.environ


def launch(runtime: Runtime, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m module arguments` in `training_gpus` processes; SesamError if one fails or cannot start."""
    count, program, environment = runtime.training_gpus, ["-m", module, *arguments], dict(os.environ)
    if runtime.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # mmengine takes a GPU whenever there is one
    if runtime.launcher == "torchrun":
        gpus = torch.cuda.device_count()
        if runtime.device != "cpu" and 0 < gpus < count:
            raise SesamError(f"runtime.training_gpus is {count}, but this machine has {gpus} GPUs. Lower it.")
        command = [sys.executable, "-m", __name__, "--standalone", f"--nproc-per-node={count}", *program]
    else:  # the Slurm job decides on which nodes and GPUs
        command = ["srun", f"--ntasks={count}", "--kill-on-bad-exit=1", sys.executable, *program]
        environment[STARTED_BY_SRUN] = "1"
        if cpus := environment.get("SLURM_CPUS_PER_TASK"):  # srun does not inherit it
            environment.setdefault("SRUN_CPUS_PER_TASK", cpus)
    try:
        code = subprocess.run(command, env=environment, check=False, preexec_fn=_exit_with_parent).returncode
    except FileNotFoundError:
        raise SesamError("runtime.launcher is srun, but this machine has no Slurm. Set it to torchrun.") from None
    if code:
        raise SesamError(f"{module} failed in {count} processes; see above. Run again to resume.")


def _exit_with_parent() -> None:
    """Have Linux end the launcher, and with it the training, when this stage is killed."""
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """In a worker process: join the process group, over NCCL, or Gloo on CPUs.

    An error ends the process at once: leaving the group in order would wait for the others, and they for it.
    """
    if not is_worker_process():
        yield
        return
    try:
        if device.type == "cuda":
            if torch.cuda.device_count() == 1:  # Slurm shows each process its own GPU as number 0
                os.environ["SLURM_LOCALID"] = "0"
            init_dist("slurm" if STARTED_BY_SRUN in os.environ else "pytorch", "nccl")
        elif STARTED_BY_SRUN in os.environ:
            raise SesamError("runtime.launcher srun needs GPUs, and there is none. Set it to torchrun.")
        else:
            torch.distributed.init_process_group("gloo")
        yield
    except BaseException as problem:
        if isinstance(problem, SesamError):
            print(f"error: {problem}", file=sys.stderr)
        elif not isinstance(problem, KeyboardInterrupt) and "peer" not in str(problem):  # Gloo's, of another process
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("LOGLEVEL", "CRITICAL")
    try:
        torchrun(sys.argv[1:])
    except (ChildFailedError, SignalException):
        sys.exit(1)
