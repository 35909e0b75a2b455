"""What test_ray_backend.py has Ray's workers do; they import this module, so it imports little."""

import os
import signal
from pathlib import Path

from sesam.errors import SesamError


def square(item: int) -> int:
    return item * item


def fail_or_kill_once(item: int) -> int:
    """Kills its process at item 7 the first time; fails at items that end in 5."""
    if item == 7 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if item % 10 == 5:
        raise SesamError(f"item {item} is wrong")
    return square(item)


def kill_always(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def divide_by_zero(item: int) -> float:
    return item / 0


def steps(read):
    """Writes what `read` returns to a file."""
    import torch

    from sesam.execution.batches import BatchSteps

    Path(f"loaded-{os.getpid()}").touch()

    def write(item: int) -> int:
        Path(f"written-{item}").write_text(str(item))
        return item

    return BatchSteps(read, lambda loaded: [(item,) for item in loaded], write, torch.device("cpu"))
