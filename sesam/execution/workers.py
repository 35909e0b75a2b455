"""Worker processes on this machine: how they start, fail and end."""

import errno
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from typing import Any

from sesam.errors import SesamError

# of a pipe or socket whose other process was killed; without a number in the middle of a message
ENDED = (None, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOENT)


def map_in_processes(function: Callable[[Any], Any], items: Sequence[Any], workers: int, title: str) -> Iterator[Any]:
    """function(item) per item, in order, in so many processes; SesamError if one of them is killed."""
    workers = min(workers, len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    size = max(1, min(4, len(items) // (4 * workers)))
    chunks = (items[k : k + size] for k in range(0, len(items), size))
    for results in run_in_processes(partial(_map_chunk, function), chunks, workers, title, 4 * workers):
        yield from results


def _map_chunk(function: Callable[[Any], Any], chunk: Sequence[Any]) -> list[Any]:
    return [function(item) for item in chunk]


def run_in_processes(
    function: Callable[[Any], Any], items: Iterable[Any], workers: int, title: str, max_pending: int
) -> Iterator[Any]:
    """function(item) per item, in order, in `workers` processes; at most `max_pending` items are given out in advance.

    Each process has its own pipe, and a thread here that waits for it. The pipe of a killed process ends; in the
    queues of ProcessPoolExecutor it could keep a lock, or half a result, for which the others would wait forever.
    """
    started: list[tuple[BaseProcess, Connection]] = []
    idle: SimpleQueue[Connection] = SimpleQueue()

    def call(item: Any) -> Any:
        pipe = idle.get()
        try:
            with _translate_ended_pipes(title, workers):
                pipe.send(item)
                succeeded, result = pipe.recv()
        finally:
            idle.put(pipe)
        if not succeeded:
            raise result
        return result

    try:
        with _translate_ended_pipes(title, workers):
            context = forkserver_context()
            for _ in range(workers):
                started.append(_start_worker(context, function))
                idle.put(started[-1][1])
        pool = ThreadPoolExecutor(workers)
        yield from in_order(pool, (pool.submit(call, item) for item in items), max_pending)
    finally:
        for _, pipe in started:
            with suppress(OSError):  # it was killed
                pipe.send(None)
        for process, pipe in started:
            pipe.close()
            process.join()


def in_order(pool: ThreadPoolExecutor, futures: Iterator[Future[Any]], max_pending: int) -> Iterator[Any]:
    """The futures' results in order; at most `max_pending` futures are in flight."""
    pending: deque[Future[Any]] = deque()
    try:
        for future in futures:
            pending.append(future)
            while len(pending) > max_pending or (pending and pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(context: ForkServerContext, function: Callable[[Any], Any]) -> tuple[BaseProcess, Connection]:
    pipe, other_end = context.Pipe()
    for end in [end for _ in range(3) for end in os.pipe()]:  # if there is no room for them, fail here: the server
        os.close(end)  # would print a traceback
    process = context.Process(target=_serve, args=(other_end, function), daemon=True)
    process.start()
    other_end.close()  # else the pipe would not end with the process
    return process, pipe


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    """Answer each item with whether function(item) succeeded, and its result or error."""
    exit_with_parent()
    import cv2

    cv2.setNumThreads(1)  # the processes run in parallel already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone reports that it was stopped
    while (item := pipe.recv()) is not None:
        try:
            answer = True, function(item)
        except Exception as problem:
            problem.add_note(traceback.format_exc())  # a pickled error has no traceback
            answer = False, problem
        pipe.send(answer)


@contextmanager
def _translate_ended_pipes(title: str, workers: int) -> Iterator[None]:
    """SesamError where a worker, or the server that forks workers, was killed."""
    try:
        yield
    except (EOFError, OSError) as problem:
        if getattr(problem, "errno", None) not in ENDED:
            raise
        raise SesamError(
            f"{title}: a worker process was killed, perhaps because memory ran out. "
            f"Run again with fewer than {workers} runtime.num_workers."
        ) from None


def forkserver_context() -> ForkServerContext:
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
