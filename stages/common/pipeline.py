"""Reading, computing and writing at the same time."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from stages.common.errors import SesamError
from stages.common.parallel import end_with_parent, progress
from stages.common.params import Runtime

Batch = Sequence[Any]
Read = Callable[[Any], Any]  # an item
Compute = Callable[[list[Any]], Sequence[tuple[Any, ...]]]  # what was read of a batch
Write = Callable[..., Any]  # one of the tuples


def batches_of(items: Sequence[Any], wanted: Callable[[Any], bool], size: int) -> list[Batch]:
    """`items` in batches of `size`, of those batches in which any item is wanted.

    An interrupted run goes on with the batches of an uninterrupted one: on a GPU a sum's
    last bit may depend on what else is in its batch.
    """
    batches = [items[k : k + size] for k in range(0, len(items), size)]
    return [batch for batch in batches if any(map(wanted, batch))]


def run(
    batches: Sequence[Batch],
    read: Read,
    compute: Compute,
    write: Write,
    device: torch.device,
    runtime: Runtime,
    title: str,
    collect: Callable[[Any], object] | None = None,
) -> None:
    """For each batch of items: write(*what) for what in compute([read(item) for item in batch]).

    On a GPU worker processes read and write while this one computes: `read` and `write`
    must be picklable. On a CPU every core works on a batch of its own from reading to
    writing, which keeps it busier than all cores on one batch. What `write` returns goes
    to `collect`, in this process, one after the other in the items' order. The first error
    is raised here when what had begun is done.
    """
    with progress(sum(map(len, batches)), title) as bar:
        stream = _with_workers if device.type == "cuda" else _with_threads
        for result in stream(batches, read, compute, write, runtime.workers):
            if collect:
                collect(result)
            bar.update()


def _with_threads(batches: Sequence[Batch], read: Read, compute: Compute, write: Write, workers: int) -> Iterator[Any]:
    def whole(batch: Batch) -> list[Any]:
        return [write(*what) for what in compute([read(item) for item in batch])]

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for several in _finished(pool, (pool.submit(whole, batch) for batch in batches), 2 * workers):
                yield from several
    finally:
        torch.set_num_threads(threads)


def _with_workers(batches: Sequence[Batch], read: Read, compute: Compute, write: Write, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _Reading(batches, read),
        batch_size=None,
        collate_fn=list,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )

    def submitted() -> Iterator[Future[Any]]:
        for loaded in loader:
            for problem in loaded:
                if isinstance(problem, SesamError):
                    raise problem
            yield from (pool.submit(write, *what) for what in compute(loaded))

    # spawn: a fork would copy this process with its threads and its GPU
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        yield from _finished(pool, submitted(), 16 * workers)


def _finished(
    pool: ThreadPoolExecutor | ProcessPoolExecutor, futures: Iterator[Future[Any]], most: int
) -> Iterator[Any]:
    """The futures' results; never more than `most` are waited for."""
    waiting: deque[Future[Any]] = deque()
    try:
        for future in futures:
            waiting.append(future)
            while len(waiting) > most or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Reading(Dataset[list[Any]]):
    """A DataLoader's data set: batch by batch, what `read` makes of its items, or the SesamError that it raised."""

    def __init__(self, batches: Sequence[Batch], read: Read) -> None:
        self.batches, self.read = batches, read

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> list[Any]:
        return [self._read(item) for item in self.batches[k]]

    def _read(self, item: Any) -> Any:
        try:
            return self.read(item)
        except SesamError as problem:
            return problem
