"""Reading, computing and writing at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from sesam.errors import ErrorCollector, SesamError
from sesam.execution.device import resolve_device
from sesam.execution.parallel import (
    exit_on_queue_error,
    exit_with_parent,
    forkserver_context,
    progress_bar,
    translate_dataloader_errors,
    try_item,
)
from sesam.params import Runtime

Batch = Sequence[Any]


class PipelineSteps(NamedTuple):
    """What becomes of a batch of items: write(*what) for what in compute([read(item) for item in batch]).

    On a GPU worker processes read and write: `read` and `write` must be picklable.
    """

    read: Callable[[Any], Any]
    compute: Callable[[list[Any]], Sequence[tuple[Any, ...]]]
    write: Callable[..., Any]
    device: torch.device


StepsFactory = Callable[
    [], PipelineSteps
]  # with a model on this process's device; picklable where Ray's workers call it


def pending_batches(items: Sequence[Any], wanted: Callable[[Any], bool], size: int) -> list[Batch]:
    """`items` in batches of `size`, of those batches in which any item is wanted.

    An interrupted run goes on with the batches of an uninterrupted one: on a GPU a sum's
    last bit may depend on what else is in its batch.
    """
    batches = [items[k : k + size] for k in range(0, len(items), size)]
    return [batch for batch in batches if any(map(wanted, batch))]


def batch_size(runtime: Runtime) -> int:
    """Images that SAM encodes together: `runtime.encoder_batch_size` on a GPU, one on a CPU."""
    if runtime.backend == "ray":
        from sesam.execution import ray_backend as on_ray

        gpu = on_ray.has_gpus(runtime)
    else:
        gpu = resolve_device(runtime).type == "cuda"
    return runtime.encoder_batch_size if gpu else 1


def run_pipeline(
    batches: Sequence[Batch],
    load: StepsFactory,
    runtime: Runtime,
    title: str,
    collect: Callable[[Any], object] | None = None,
) -> None:
    """Take every batch of items through the steps that `load_trace` makes, here or on Ray's workers.

    What `write` returns goes to `collect`, in this process, one after the other in the items' order. An item that
    cannot be read leaves the others as they are: all that cannot are told in one SesamError when the rest is done. Any
    other error is raised when what had begun is done.
    """
    bad = ErrorCollector()
    with progress_bar(sum(map(len, batches)), title) as bar:
        if runtime.backend == "ray":
            from sesam.execution import ray_backend as on_ray

            results = on_ray.iter_results(batches, load, runtime)
        else:
            results = iter_results(batches, load(), runtime.num_workers) if batches else iter(())
        for result in results:
            if isinstance(result, SesamError):
                bad.add(result)
            elif collect:
                collect(result)
            bar.update()
    bad.raise_if_any()


def iter_results(batches: Sequence[Batch], steps: PipelineSteps, workers: int) -> Iterator[Any]:
    """For every item what `write` returned, or the SesamError of an item that cannot be read.

    On a GPU worker processes read and write while this one computes. On a CPU every core works on a batch of its own
    from reading to writing, which keeps it busier than all cores on one batch.
    """
    return (_with_workers if steps.device.type == "cuda" else _with_threads)(batches, steps, workers)


def _with_threads(batches: Sequence[Batch], steps: PipelineSteps, workers: int) -> Iterator[Any]:
    def whole(batch: Batch) -> list[Any]:
        loaded, bad = split_errors([try_item(steps.read, item) for item in batch])
        return [*bad, *(steps.write(*what) for what in (steps.compute(loaded) if loaded else ()))]

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for several in _finished(pool, (pool.submit(whole, batch) for batch in batches), 2 * workers):
                yield from several
    finally:
        torch.set_num_threads(threads)


def _with_workers(batches: Sequence[Batch], steps: PipelineSteps, workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _ReadDataset(batches, steps.read),
        batch_size=None,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=exit_on_queue_error,
        pin_memory=torch.cuda.is_available(),
    )

    def submitted() -> Iterator[Future[Any]]:
        for several in loader:
            loaded, bad = split_errors(several)
            for problem in bad:
                told: Future[Any] = Future()
                told.set_result(problem)
                yield told
            yield from (pool.submit(steps.write, *what) for what in (steps.compute(loaded) if loaded else ()))

    with (
        translate_dataloader_errors(workers),
        ProcessPoolExecutor(workers, forkserver_context(), exit_with_parent) as pool,
    ):
        try:
            yield from _finished(pool, submitted(), 16 * workers)
        except BrokenProcessPool:
            raise SesamError(
                "A process that writes files was killed, perhaps for want of memory. Run again, with fewer than "
                f"{workers} runtime.num_workers."
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


class _ReadDataset(Dataset[list[Any]]):
    """A DataLoader's data set: batch by batch, what `read` makes of its items, or the SesamError that it raised."""

    def __init__(self, batches: Sequence[Batch], read: Callable[[Any], Any]) -> None:
        self.batches, self.read = batches, read

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> list[Any]:
        return [try_item(self.read, item) for item in self.batches[k]]


def split_errors(several: list[Any]) -> tuple[list[Any], list[SesamError]]:
    """What was read, and what could not be."""
    bad = [one for one in several if isinstance(one, SesamError)]
    return [one for one in several if not isinstance(one, SesamError)], bad
