"""Worker processes on this machine: how they start, fail and end."""

import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any

from sesam.errors import SesamError


def map_in_processes(function: Callable[[Any], Any], items: Sequence[Any], workers: int, title: str) -> Iterator[Any]:
    """function(item) per item, in order, in so many processes; SesamError if one of them is killed."""
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    chunk = max(1, min(4, len(items) // (4 * workers)))
    with ProcessPoolExecutor(workers, forkserver_context(), _init_worker) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunk)
        except BrokenProcessPool:
            raise worker_killed(title, workers) from None
        finally:
            pool.shutdown(cancel_futures=True)


def worker_killed(title: str, workers: int) -> SesamError:
    return SesamError(
        f"{title}: a worker process was killed, perhaps because memory ran out. "
        f"Run again with fewer than {workers} runtime.num_workers."
    )


def forkserver_context() -> BaseContext:
    """Workers are forks of a server process that imports once what this one has imported.

    Forks of this process would inherit its threads and GPU; fresh processes would each import PyTorch.
    """
    context = multiprocessing.get_context("forkserver")
    # not the program itself: every worker imports it, and warns if it is there already
    main = getattr(sys.modules["__main__"].__spec__, "name", None)
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("sesam.") and name != main])
    forkserver.ensure_running()
    return context


def exit_with_parent() -> None:
    """Have this worker process exit when its parent does: a killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _init_worker() -> None:
    import cv2

    exit_with_parent()
    cv2.setNumThreads(1)  # the processes run in parallel already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone reports that it was stopped


def exit_on_queue_error(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: exit if it cannot send a batch; the main process would wait for it forever."""

    def exit_worker(problem: Exception, item: object) -> None:
        print(f"A worker process cannot send what it read: {problem}", file=sys.stderr, flush=True)
        os._exit(1)

    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(exit_worker)


@contextmanager
def translate_dataloader_errors(workers: int) -> Iterator[None]:
    """SesamError where a worker of a PyTorch DataLoader has died, which PyTorch reports as a long RuntimeError."""
    try:
        yield
    except RuntimeError as problem:
        if not str(problem).startswith("DataLoader worker"):
            raise
        raise SesamError(
            "A worker process that reads files has died, perhaps because memory ran out, or because /dev/shm is full: "
            "processes pass images through it, and a container has 64 MB of it by default. Increase it (docker's "
            f"--shm-size 8g), or use fewer than {workers} runtime.num_workers, and run again."
        ) from None
