"""Reading, computing and writing at the same time, here or, if runtime.backend is ray, in Ray's workers."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from sesam.errors import SesamError, try_item
from sesam.execution import ray_backend
from sesam.execution.device import resolve_device
from sesam.execution.parallel import collect_results
from sesam.execution.workers import exit_on_queue_error, in_order, run_in_processes, translate_dataloader_errors
from sesam.params import Runtime

Batch = Sequence[Any]


class BatchSteps(NamedTuple):
    """`for row in compute([read(item) for item in batch]): write(*row)`; `read` and `write` must be picklable."""

    read: Callable[[Any], Any]
    compute: Callable[[list[Any]], Sequence[tuple[Any, ...]]]
    write: Callable[..., Any]
    device: torch.device


# loads a model on this process's device; picklable, because Ray's workers call it
StepsFactory = Callable[[], BatchSteps]


def pending_batches(items: Sequence[Any], pending: Callable[[Any], bool], size: int) -> list[Batch]:
    """The batches of `size` items with a pending item, as an uninterrupted run has them: results may depend on them."""
    batches = [items[k : k + size] for k in range(0, len(items), size)]
    return [batch for batch in batches if any(map(pending, batch))]


def batch_size(runtime: Runtime) -> int:
    """Images that SAM encodes together: `runtime.encoder_batch_size` on a GPU, one on a CPU."""
    on_gpu = ray_backend.has_gpus(runtime) if runtime.backend == "ray" else resolve_device(runtime).type == "cuda"
    return runtime.encoder_batch_size if on_gpu else 1


def run_batches(
    batches: Sequence[Batch],
    make_steps: StepsFactory,
    runtime: Runtime,
    title: str,
    collect: Callable[[Any], object] = lambda result: None,
) -> None:
    """Read, compute and write every batch with the steps that `make_steps` returns, here or in Ray's workers.

    What `write` returns goes to `collect`, in this process, one after the other in the items' order. An item that
    cannot be read does not stop the others: one SesamError lists all of them at the end. Any other error is raised
    when the batches in progress are done.
    """
    if runtime.backend == "ray":
        outcomes = ray_backend.run_on_ray(partial(_make_run, make_steps), batches, runtime)
    else:
        outcomes = iter_results(batches, make_steps(), runtime.num_workers) if batches else iter(())
    collect_results(outcomes, sum(map(len, batches)), title, collect)


def _make_run(make_steps: StepsFactory, workers: int) -> Callable[[Sequence[Batch]], list[Any]]:
    """The function that a worker of Ray calls again and again, with its model loaded."""
    steps = make_steps()
    return lambda batches: list(iter_results(batches, steps, workers))


def iter_results(batches: Sequence[Batch], steps: BatchSteps, workers: int) -> Iterator[Any]:
    """Per item what `write` returned, or the SesamError of an item that cannot be read.

    On a GPU worker processes read and write while this one computes. On a CPU every core takes its own batch from
    reading to writing, which keeps it busier than all cores on one batch.
    """
    return (_with_workers if steps.device.type == "cuda" else _with_threads)(batches, steps, workers)


def _with_threads(batches: Sequence[Batch], steps: BatchSteps, workers: int) -> Iterator[Any]:
    def run_batch(batch: Batch) -> list[Any]:
        loaded, errors = _read_batch(steps.read, batch)
        return [*errors, *(steps.write(*row) for row in (steps.compute(loaded) if loaded else ()))]

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for results in in_order(pool, (pool.submit(run_batch, batch) for batch in batches), 2 * workers):
                yield from results
    finally:
        torch.set_num_threads(threads)


def _with_workers(batches: Sequence[Batch], steps: BatchSteps, workers: int) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        batches,  # type: ignore[arg-type]  # a sequence is enough
        batch_size=None,
        collate_fn=partial(_read_batch, steps.read),
        num_workers=workers,
        worker_init_fn=exit_on_queue_error,
        pin_memory=torch.cuda.is_available(),
    )

    def computed() -> Iterator[Any]:
        for loaded, errors in loader:
            yield from errors
            yield from steps.compute(loaded) if loaded else ()

    with translate_dataloader_errors(workers):
        write = partial(_write_row, steps.write)
        yield from run_in_processes(write, computed(), workers, "writing files", 16 * workers)


def _write_row(write: Callable[..., Any], row: tuple[Any, ...] | SesamError) -> Any:
    """What `write` returned, or the error of an item that could not be read."""
    return row if isinstance(row, SesamError) else write(*row)


def _read_batch(read: Callable[[Any], Any], batch: Batch) -> tuple[list[Any], list[SesamError]]:
    """What was read, and the errors of what could not be."""
    outcomes = [try_item(read, item) for item in batch]
    errors = [outcome for outcome in outcomes if isinstance(outcome, SesamError)]
    return [outcome for outcome in outcomes if not isinstance(outcome, SesamError)], errors
