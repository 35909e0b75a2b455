"""The device that the networks run on."""

import torch

from sesam.errors import SesamError
from sesam.params import Runtime


def resolve_device(runtime: Runtime) -> torch.device:
    """The device of runtime.device; `auto` is a GPU if there is one. SesamError if cuda is not available."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise SesamError(
            "runtime.device is cuda, but PyTorch finds no CUDA GPU. Set it to auto or cpu, or install a CUDA build."
        )
    return torch.device("cuda" if runtime.device != "cpu" and torch.cuda.is_available() else "cpu")
