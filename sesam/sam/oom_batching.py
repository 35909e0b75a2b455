"""How much is computed at once on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sesam.errors import SesamError

Item = TypeVar("Item")
Result = TypeVar("Result")


class OomBatcher:
    """How many of a kind are computed at once; halved for good when the GPU's memory does not hold them."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number = kind, number

    def map(self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """The results of `work` on consecutive parts of `items`, in order; SesamError if even one is too many."""
        results: list[Result] = []
        while len(results) < len(items):
            try:
                results += work(items[len(results) : len(results) + self.number])
                continue
            except RuntimeError as problem:
                reason = str(problem).partition("\n")[0]
                # the driver's and cuBLAS's own, as where others use the GPU too, are no OutOfMemoryError
                if "out of memory" not in reason and "ALLOC_FAILED" not in reason:
                    raise
            if self.number == 1:
                raise SesamError(f"The GPU's memory does not hold one of the {self.kind} at a time ({reason}).")
            # out of the except block: the exception would keep the memory of the failed call
            self.number //= 2
            torch.cuda.empty_cache()
            print(f"GPU out of memory: from here on {self.number} {self.kind} at once", flush=True)
        return results
