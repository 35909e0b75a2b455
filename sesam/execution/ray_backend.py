"""The work on images on Ray: on this machine, or on the cluster that Ray's own RAY_ADDRESS names.

Every worker has the shared files at the paths that they have here. A worker that is lost, or its node, is replaced,
and what it had begun is done again: files appear whole or not at all, and their bytes do not depend on who writes them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sesam.artifacts.atomic_io import MULTI_NODE
from sesam.errors import SesamError
from sesam.params import Runtime

if TYPE_CHECKING:
    from sesam.execution.pipeline import Batch, PipelineSteps, StepsFactory

MAX_TRIES = 3  # of the same images, before they are taken for what kills a worker


def connect(runtime: Runtime) -> Any:
    """The module ray, connected; SesamError if it is not installed, or there is no cluster where RAY_ADDRESS says."""
    try:
        import ray
    except ImportError:
        raise SesamError(
            "params.yaml: runtime.backend is ray, which is not installed. Run "
            "`pip install -c constraints.txt -e '.[ray]'`, or set it to local."
        ) from None
    if ray.is_initialized():
        return ray
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its way of later versions; without it a warning
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is raised; the same of others is noise
    address = os.environ.get("RAY_ADDRESS")
    here = {} if address else {"num_cpus": runtime.num_workers, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="error", **here)
    except (ConnectionError, RuntimeError, ValueError) as problem:
        where = f"be reached at {address} (RAY_ADDRESS)" if address else "start on this machine"
        raise SesamError(f"Ray cannot {where}: {problem}") from None
    resources, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
    if not resources.get("CPU"):  # the head of a cluster whose other nodes are still to come
        raise SesamError(f"Ray knows of no CPU at {address} (RAY_ADDRESS). Wait until its nodes have joined it.")
    print(f"Ray: {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs", flush=True)
    return ray


def has_gpus(runtime: Runtime) -> bool:
    """Whether Ray's workers compute on GPUs; SesamError if they should and there are none."""
    gpus = connect(runtime).cluster_resources().get("GPU", 0)
    if runtime.device == "cuda" and not gpus:
        raise SesamError("runtime.device is cuda, but Ray knows of no GPU. Set it to auto or cpu.")
    return runtime.device != "cpu" and gpus >= 1


def map_images(function: Callable[[Any], Any], items: Sequence[Any], runtime: Runtime) -> Iterator[Any]:
    """function(item) of every item, in order: tasks of one CPU each."""
    ray = connect(runtime)
    cpus = int(ray.cluster_resources()["CPU"])
    task = ray.remote(num_cpus=1, max_retries=MAX_TRIES - 1)(_work)
    shared = ray.put(function)
    size = max(1, min(32, len(items) // (4 * cpus)))
    parts = [items[k : k + size] for k in range(0, len(items), size)]
    waiting: deque[Any] = deque()
    try:
        for k in range(len(parts)):
            while len(waiting) < 4 * cpus and k + len(waiting) < len(parts):
                waiting.append(task.remote(Path.cwd(), shared, parts[k + len(waiting)]))
            try:
                yield from _result(ray, waiting.popleft())
            except ray.exceptions.RayError as problem:
                raise _worker_lost(parts[k][0], problem) from None
    finally:
        for call in waiting:
            ray.cancel(call, force=True)


def _work(folder: Path, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    _init_worker(folder)
    return [function(item) for item in items]


def iter_results(batches: Sequence[Batch], load: StepsFactory, runtime: Runtime) -> Iterator[Any]:
    """What `pipeline.stream` gives, of workers with a model each: one a GPU, or one a CPU where there is none."""
    ray, gpus = connect(runtime), has_gpus(runtime)
    resources = ray.cluster_resources()
    number = int(resources["GPU" if gpus else "CPU"])
    # no CPU beside a GPU: on this machine Ray has runtime.num_workers of them, which may be fewer than GPUs
    kind = ray.remote(num_cpus=int(not gpus), num_gpus=int(gpus))(_Worker)
    # on a GPU every part starts processes that read and write: a part for each worker, or few
    size = max(1, min(512, -(-len(batches) // number)) if gpus else min(8, len(batches) // (4 * number)))
    parts = [batches[k : k + size] for k in range(0, len(batches), size)]
    shared = ray.put(load)
    todo, tries, failed_starts, following = deque(range(len(parts))), [0] * len(parts), 0, 0
    done: dict[int, list[Any]] = {}
    running: dict[Any, tuple[Any, int | None]] = {}  # a call: its worker, and its part or, while it starts, none

    def start() -> None:
        worker = kind.remote(Path.cwd(), shared, runtime.num_workers if gpus else 1)
        running[worker.ready.remote()] = (worker, None)

    for _ in range(min(number, len(parts))):
        start()
    while following < len(parts):
        ((call, *_), _) = ray.wait(list(running))
        worker, part = running.pop(call)
        try:
            result = _result(ray, call)
        except ray.exceptions.RayError as problem:  # killed, or its node lost; the others do what it had begun
            if part is None:
                failed_starts += 1
                if failed_starts == MAX_TRIES:
                    raise SesamError(
                        f"Ray's workers do not start ({_reason(problem)}). Every node needs this environment, and the "
                        f"checkout at {Path.cwd()}."
                    ) from None
            else:
                tries[part] += 1
                if tries[part] == MAX_TRIES:
                    raise _worker_lost(parts[part][0][0], problem) from None
                todo.appendleft(part)
            start()
            continue
        failed_starts = 0
        if part is not None:
            done[part] = result
        if todo:
            following_part = todo.popleft()
            running[worker.work.remote(parts[following_part])] = (worker, following_part)
        while following in done:
            yield from done.pop(following)
            following += 1


def _init_worker(folder: Path) -> None:
    """Have a worker's process work where the stage does."""
    import cv2

    cv2.setNumThreads(1)
    os.environ[MULTI_NODE] = "1"
    os.chdir(folder)


class _Worker:
    """A process with a model."""

    def __init__(self, folder: Path, load: StepsFactory, processes: int) -> None:
        _init_worker(folder)
        self.load, self.processes = load, processes
        self.steps: PipelineSteps | None = None

    def ready(self) -> None:
        """Answers when the process has started."""

    def work(self, batches: Sequence[Batch]) -> list[Any]:
        from sesam.execution import pipeline

        if self.steps is None:
            self.steps = self.load()
        return list(pipeline.iter_results(batches, self.steps, self.processes))


def _result(ray: Any, call: Any) -> Any:
    """What a call returned. What it raised is raised; a RayError, if it was lost."""
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as problem:
        raise problem.cause from None


def _reason(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1].strip()


def _worker_lost(item: Any, problem: Exception) -> SesamError:
    return SesamError(
        f"Ray lost {MAX_TRIES} workers over the images from {getattr(item, 'id', item)} on, perhaps for want of memory "
        f"({_reason(problem)}). Run again to go on, with fewer workers a node."
    )
