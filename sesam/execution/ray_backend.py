"""The work on images on Ray: on this machine, or on the cluster that Ray's own RAY_ADDRESS names.

Workers share this process's files and paths. Ray replaces lost ones, whose work is done again: writes are atomic and
do not depend on the worker.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sesam.artifacts.atomic_io import MULTI_NODE
from sesam.errors import SesamError
from sesam.params import Runtime

RunFactory = Callable[[int], Callable[[Sequence[Any]], list[Any]]]

MAX_TRIES = 3  # of the same images, before they count as the reason that workers are lost


def connect(runtime: Runtime) -> Any:
    """The module ray, connected; SesamError if it is not installed, or if RAY_ADDRESS has no cluster."""
    try:
        import ray
    except ImportError:
        raise SesamError(
            "params.yaml: runtime.backend is ray, which is not installed. Run "
            "`pip install -c constraints.txt -e '.[ray]'`, or set it to local."
        ) from None
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # later versions' default; silences a warning
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is raised; its repetitions are noise
    address = os.environ.get("RAY_ADDRESS")
    options = {} if address else {"num_cpus": runtime.num_workers, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        failure = f"be reached at {address} (RAY_ADDRESS)" if address else "start on this machine"
        raise SesamError(f"Ray cannot {failure}: {problem}") from None
    resources, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    if not resources.get("CPU"):  # the head of a cluster, before its other nodes join
        raise SesamError(f"Ray knows of no CPU at {address} (RAY_ADDRESS). Wait until its nodes have joined it.")
    print(f"Ray: {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs", flush=True)
    return ray


def has_gpus(runtime: Runtime) -> bool:
    """Whether Ray's workers compute on GPUs; SesamError if they should and there are none."""
    gpus = connect(runtime).cluster_resources().get("GPU", 0)
    if runtime.device == "cuda" and not gpus:
        raise SesamError("runtime.device is cuda, but Ray knows of no GPU. Set it to auto or cpu.")
    return runtime.device != "cpu" and gpus >= 1


def map_on_ray(function: Callable[[Any], Any], items: Sequence[Any], runtime: Runtime) -> Iterator[Any]:
    """function(item) per item, in order, from one worker per CPU."""
    count = int(connect(runtime).cluster_resources()["CPU"])
    batches = _chunks(items, max(1, min(32, len(items) // (4 * count))))
    yield from _WorkerPool(partial(_map_batches, function), _chunks(batches, 1)).results(count)


def _map_batches(function: Callable[[Any], Any], processes: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda batches: [function(item) for batch in batches for item in batch]


def run_on_ray(make_run: RunFactory, batches: Sequence[Any], runtime: Runtime) -> Iterator[Any]:
    """The results of every batch in order, from workers that load a model each: one per GPU, or per CPU without GPUs.

    make_run(processes) is called once in every worker, and returns what the worker calls with chunks of batches.
    """
    gpus = has_gpus(runtime)
    count = int(connect(runtime).cluster_resources()["GPU" if gpus else "CPU"])
    # on a GPU every chunk starts processes that read and write: few chunks, at best one per worker
    size = max(1, min(512, -(-len(batches) // count)) if gpus else min(8, len(batches) // (4 * count)))
    processes = runtime.num_workers if gpus else 1
    yield from _WorkerPool(make_run, _chunks(batches, size), gpus, processes).results(count)


class _WorkerPool:
    """Gives chunks of batches to Ray's workers; replaces lost workers, and does their chunks again."""

    def __init__(
        self, make_run: RunFactory, chunks: list[Sequence[Any]], gpus: bool = False, processes: int = 1
    ) -> None:
        import ray

        # no CPU beside a GPU: on this machine Ray has runtime.num_workers of them, which may be fewer than GPUs
        worker = ray.remote(num_cpus=int(not gpus), num_gpus=int(gpus))(_Worker)
        self.new_worker = partial(worker.remote, Path.cwd(), ray.put(make_run), processes)
        self.ray, self.chunks = ray, chunks
        self.todo = deque(range(len(chunks)))
        self.tries, self.failed_starts = [0] * len(chunks), 0
        self.running: dict[Any, tuple[Any, int | None]] = {}  # call: worker, and chunk or, while it starts, None

    def results(self, workers: int) -> Iterator[Any]:
        """The results in the order of the chunks."""
        for _ in range(min(workers, len(self.chunks))):
            self._start_worker()
        done: dict[int, list[Any]] = {}
        for chunk in range(len(self.chunks)):
            while chunk not in done:
                done |= self._next_done()
            yield from done.pop(chunk)

    def _start_worker(self) -> None:
        worker = self.new_worker()
        self.running[worker.ready.remote()] = (worker, None)

    def _next_done(self) -> dict[int, list[Any]]:
        """Wait for a call to end; the results of its chunk, if it had one and was not lost."""
        ((call, *_), _) = self.ray.wait(list(self.running))
        worker, chunk = self.running.pop(call)
        try:
            results = _get(self.ray, call)
        except self.ray.exceptions.RayError as problem:  # the worker was killed, or its node lost
            self._retry(chunk, problem)
            return {}
        self.failed_starts = 0
        if self.todo:
            following = self.todo.popleft()
            self.running[worker.work.remote(self.chunks[following])] = (worker, following)
        return {} if chunk is None else {chunk: results}

    def _retry(self, chunk: int | None, problem: Exception) -> None:
        if chunk is None:
            self.failed_starts += 1
            if self.failed_starts == MAX_TRIES:
                raise SesamError(
                    f"Ray's workers do not start ({_last_line(problem)}). Every node needs this environment, and the "
                    f"checkout at {Path.cwd()}."
                ) from None
        else:
            self.tries[chunk] += 1
            if self.tries[chunk] == MAX_TRIES:
                first = self.chunks[chunk][0][0]
                raise SesamError(
                    f"Ray lost {MAX_TRIES} workers at the images from {getattr(first, 'id', first)} on, perhaps "
                    f"because memory ran out ({_last_line(problem)}). Run again to resume, with fewer workers per node."
                ) from None
            self.todo.appendleft(chunk)
        self._start_worker()


class _Worker:
    """A worker process with a model, in the stage's folder."""

    def __init__(self, folder: Path, make_run: RunFactory, processes: int) -> None:
        import cv2

        cv2.setNumThreads(1)
        os.environ[MULTI_NODE] = "1"
        os.chdir(folder)
        self.make_run = partial(make_run, processes)
        self.run: Callable[[Sequence[Any]], list[Any]] | None = None

    def ready(self) -> None:
        """Returns when the process has started."""

    def work(self, batches: Sequence[Any]) -> list[Any]:
        if self.run is None:
            self.run = self.make_run()
        return self.run(batches)


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[k : k + size] for k in range(0, len(items), size)]


def _get(ray: Any, call: Any) -> Any:
    """What a call returned. Raises what it raised; a RayError, if it was lost."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as problem:
        raise problem.cause from None


def _last_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1].strip()
