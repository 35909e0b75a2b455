"""Reading, computing and writing at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from sesam.errors import BadItems, SesamError
from sesam.execution.device import pick_device
from sesam.execution.parallel import (
    attempt,
    end_if_unsent,
    end_with_parent,
    progress,
    readers_watched,
    worker_context,
)
from sesam.params import Runtime

Batch = Sequence[Any]


class Steps(NamedTuple):
    """What becomes of a batch of items: write(*what) for what in compute([read(item) for item in batch]).

    On a GPU worker processes read and write: `read` and `write` must be picklable.
    """

    read: Callable[[Any], Any]
    compute: Callable[[list[Any]], Sequence[tuple[Any, ...]]]
    write: Callable[..., Any]
    device: torch.device


Load = Callable[[], Steps]  # with a model on this process's device; picklable where Ray's workers call it


def batches_of(items: Sequence[Any], wanted: Callable[[Any], bool], size: int) -> list[Batch]:
    """`items` in batches of `size`, of those batches in which any item is wanted.

    An interrupted run goes on with the batches of an uninterrupted one: on a GPU a sum's
    last bit may depend on what else is in its batch.
    """
    batches = [items[k : k + size] for k in range(0, len(items), size)]
    return [batch for batch in batches if any(map(wanted, batch))]


def batch_size(runtime: Runtime) -> int:
    """Images that SAM encodes together: `runtime.batch` on a GPU, one on a CPU."""
    if runtime.engine == "ray":
        from sesam.execution import ray_backend as on_ray

        gpu = on_ray.has_gpus(runtime)
    else:
        gpu = pick_device(runtime).type == "cuda"
    return runtime.batch if gpu else 1


def run(
    batches: Sequence[Batch],
    load: Load,
    runtime: Runtime,
    title: str,
    collect: Callable[[Any], object] | None = None,
) -> None:
    """Take every batch of items through the steps that `load` makes, here or on Ray's workers.

    What `write` returns goes to `collect`, in this process, one after the other in the items' order. An item that
    cannot be read leaves the others as they are: all that cannot are told in one SesamError when the rest is done. Any
    other error is raised when what had begun is done.
    """
    bad = BadItems()
    with progress(sum(map(len, batches)), title) as bar:
        if runtime.engine == "ray":
            from sesam.execution import ray_backend as on_ray

            results = on_ray.stream(batches, load, runtime)
        else:
            results = stream(batches, load(), runtime.workers) if batches else iter(())
        for result in results:
            if isinstance(result, SesamError):
                bad.add(result)
            elif collect:
                collect(result)
            bar.update()
    bad.tell()


def stream(batches: Sequence[Batch], steps: Steps, workers: int) -> Iterator[Any]:
    """For every item what `write` returned, or the SesamError of an item that cannot be read.

    On a GPU worker processes read and write while this one computes. On a CPU every core works on a batch of its own
    from reading to writing, which keeps it busier than all cores on one batch.
    """
    return (_with_workers if steps.device.type == "cuda" else _with_threads)(batches, steps, workers)


def _with_threads(batches: Sequence[Batch], steps: Steps, workers: int) -> Iterator[Any]:
    def whole(batch: Batch) -> list[Any]:
        loaded, bad = _apart([attempt(steps.read, item) for item in batch])
        return [*bad, *(steps.write(*what) for what in (steps.compute(loaded) if loaded else ()))]

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for several in _finished(pool, (pool.submit(whole, batch) for batch in batches), 2 * workers):
                yield from several
    finally:
        torch.set_num_threads(threads)


def _with_workers(batches: Sequence[Batch], steps: Steps, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _Reading(batches, steps.read),
        batch_size=None,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=end_if_unsent,
        pin_memory=torch.cuda.is_available(),
    )

    def submitted() -> Iterator[Future[Any]]:
        for several in loader:
            loaded, bad = _apart(several)
            for problem in bad:
                told: Future[Any] = Future()
                told.set_result(problem)
                yield told
            yield from (pool.submit(steps.write, *what) for what in (steps.compute(loaded) if loaded else ()))

    with readers_watched(workers), ProcessPoolExecutor(workers, worker_context(), end_with_parent) as pool:
        try:
            yield from _finished(pool, submitted(), 16 * workers)
        except BrokenProcessPool:
            raise SesamError(
                "A process that writes files was killed, perhaps for want of memory. Run again, with fewer than "
                f"{workers} runtime.workers."
            ) from None


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

    def __init__(self, batches: Sequence[Batch], read: Callable[[Any], Any]) -> None:
        self.batches, self.read = batches, read

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> list[Any]:
        return [attempt(self.read, item) for item in self.batches[k]]


def _apart(several: list[Any]) -> tuple[list[Any], list[SesamError]]:
    """What was read, and what could not be."""
    bad = [one for one in several if isinstance(one, SesamError)]
    return [one for one in several if not isinstance(one, SesamError)], bad
