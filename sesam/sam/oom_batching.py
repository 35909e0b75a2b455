"""Batches that are halved when the GPU's memory does not hold them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sesam.errors import SesamError

Item = TypeVar("Item")
Result = TypeVar("Result")


class OomBatcher:
    """Computes items in batches of `batch_size`, halved for good when the GPU is out of memory. kind: of the items."""

    def __init__(self, kind: str, batch_size: int) -> None:
        self.kind, self.batch_size = kind, batch_size

    def map(self, compute: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """The results of `compute` on consecutive batches, in order; SesamError if a batch of one is too large."""
        results: list[Result] = []
        while len(results) < len(items):
            try:
                results += compute(items[len(results) : len(results) + self.batch_size])
                continue
            except RuntimeError as problem:
                reason = str(problem).partition("\n")[0]
                # where others use the GPU too, errors of the driver and of cuBLAS are not an OutOfMemoryError
                if "out of memory" not in reason and "ALLOC_FAILED" not in reason:
                    raise
            if self.batch_size == 1:
                raise SesamError(f"The GPU's memory does not hold one of the {self.kind} at a time ({reason}).")
            # out of the except block: the exception would keep the memory of the failed call
            self.batch_size //= 2
            torch.cuda.empty_cache()
            print(f"GPU out of memory: from here on {self.batch_size} {self.kind} at once", flush=True)
        return results
