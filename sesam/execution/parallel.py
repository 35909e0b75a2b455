"""One function over many images, with a progress bar: in local processes, or on Ray if runtime.backend is ray."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from sesam.errors import Item, Result, SesamError, raise_errors, try_item
from sesam.execution import ray_backend
from sesam.execution.progress import ProgressBar
from sesam.execution.workers import map_in_processes
from sesam.params import Runtime


def map_images(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    runtime: Runtime,
    title: str,
    collect: Callable[[Result], object] | None = None,
) -> list[Result]:
    """[function(item) for item in items] in worker processes, local ones or Ray's; results in the items' order.

    `function` must be picklable (a top-level function or a functools.partial of one). A SesamError does not stop the
    other items: one SesamError lists all of them at the end. A DiskError or any other exception is raised at once;
    SesamError if a worker is killed.

    collect: takes each result instead of the list, so that many large ones can be summed.
    """
    guarded = partial(try_item, function)
    if runtime.backend == "ray":
        outcomes = ray_backend.map_on_ray(guarded, items, runtime)
    else:
        outcomes = map_in_processes(guarded, items, runtime.num_workers, title)
    results: list[Result] = []
    collect_results(outcomes, len(items), title, collect or results.append)
    return results


def collect_results(outcomes: Iterator[Any], total: int, title: str, collect: Callable[[Any], object]) -> None:
    """Pass results on; raise their SesamErrors as one at the end."""
    errors: list[str] = []
    for outcome in track(outcomes, total, title):
        if isinstance(outcome, SesamError):
            errors.append(str(outcome))
        else:
            collect(outcome)
    raise_errors(errors)


def track(items: Iterable[Item], total: int, title: str) -> Iterator[Item]:
    """The items, with a progress bar, and one closing line: what, how many, how long."""
    started = time.monotonic()
    yield from ProgressBar(items, title, total, unit="image")
    print(f"{title}: {total} images in {time.monotonic() - started:.1f} s", flush=True)
