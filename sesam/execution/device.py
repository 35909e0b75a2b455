"""Which processor the networks run on."""

from __future__ import annotations

import torch

from sesam.errors import SesamError
from sesam.params import Runtime


def resolve_device(runtime: Runtime) -> torch.device:
    """The device that runtime.device names; `auto` takes a GPU where there is one."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise SesamError(
            "runtime.device is cuda, but PyTorch finds no CUDA GPU. Set it to auto or cpu, or install a CUDA build."
        )
    return torch.device("cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu")
