"""One pure function over many images, in worker processes, in order, with a progress bar."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any, TypeVar

from tqdm import tqdm

from sesam.errors import DiskError, ErrorCollector, SesamError
from sesam.params import Runtime

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_images(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    runtime: Runtime,
    title: str,
    collect: Callable[[Result], object] | None = None,
) -> list[Result]:
    """[function(item) for item in items] in worker processes, here or Ray's; results in the items' order.

    `function` must be picklable (a top-level function or a functools.partial of one). A SesamError leaves the other
    items as they are, all are told in one when the rest is done, but for a disk's. Any other exception in a worker is
    raised here; SesamError if a worker is killed.

    collect: takes each result in place of the list, so that many large ones can be summed.
    """
    results: list[Result] = []
    bad, collect = ErrorCollector(), collect or results.append
    with progress_bar(len(items), title) as bar:
        for result in _results(partial(try_item, function), items, runtime, title):
            if isinstance(result, SesamError):
                bad.add(result)
            else:
                collect(result)
            bar.update()
    bad.raise_if_any()
    return results


def try_item(function: Callable[[Item], Result], item: Item) -> Result | SesamError:
    """What the function returns, or the SesamError that it raises of this item."""
    try:
        return function(item)
    except DiskError:
        raise
    except SesamError as problem:
        return problem


def exit_on_queue_error(worker: int) -> None:
    """Have this process of PyTorch's DataLoader end if it cannot send what it read; its `worker_init_fn`.

    Otherwise multiprocessing drops that batch with a traceback, and the process that computes waits for it for ever.
    """

    def end(problem: Exception, what: object) -> None:
        print(f"A process cannot pass on what it read: {problem}", file=sys.stderr, flush=True)
        os._exit(1)

    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(end)


@contextmanager
def translate_dataloader_errors(workers: int) -> Iterator[None]:
    """SesamError where a process of PyTorch's DataLoader has ended, which is a RuntimeError of many words."""
    try:
        yield
    except RuntimeError as problem:
        if not str(problem).startswith("DataLoader worker"):
            raise
        raise SesamError(
            "A process that reads files has ended, perhaps for want of memory, or because /dev/shm is full, through "
            "which processes pass images and of which a container has 64 MB by default. Give it more (docker's "
            f"--shm-size 8g), or take fewer than {workers} runtime.num_workers, and run again."
        ) from None


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], runtime: Runtime, title: str
) -> Iterator[Result]:
    if runtime.backend == "ray":
        from sesam.execution import ray_backend as on_ray

        yield from on_ray.map_images(function, items, runtime)
        return
    workers = min(runtime.num_workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    chunk = max(1, min(4, len(items) // (4 * workers)))
    with ProcessPoolExecutor(workers, forkserver_context(), _init_worker) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunk)
        except BrokenProcessPool:
            raise SesamError(
                f"{title}: a worker process was killed, perhaps for want of memory. "
                f"Run again with fewer than {workers} runtime.num_workers."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def progress_bar(total: int, title: str) -> Iterator[tqdm[Any]]:
    """A progress bar with a rate, and one closing line: what, how many, how long."""
    started = time.monotonic()
    with tqdm(total=total, desc=title, unit="image", leave=False, dynamic_ncols=True, mininterval=0.5) as bar:
        yield bar
    print(f"{title}: {total} images in {time.monotonic() - started:.1f} s", flush=True)


def forkserver_context() -> BaseContext:
    """Where worker processes come from: a process that imports once what this one runs, from now on, and forks.

    Forked from this one they would hold its threads and its GPU, half-way; started anew each would import PyTorch.
    """
    context = multiprocessing.get_context("forkserver")
    # not the program itself: every worker runs it anew, and warns if it is there already
    main = getattr(sys.modules["__main__"].__spec__, "name", None)
    context.set_forkserver_preload(
        [name for name in sys.modules if name.startswith(("sesam.", "stages.")) and name != main]
    )
    forkserver.ensure_running()
    return context


def exit_with_parent() -> None:
    """Have this worker process end when the one that started it does: a killed one cannot tell its workers."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _init_worker() -> None:
    import cv2

    exit_with_parent()

    cv2.setNumThreads(1)  # the processes are the parallelizm
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone tells that it was stopped
