"""Errors for people: a message without a traceback, and exit code 1."""

import errno
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import TypeVar

from pydantic import ValidationError

MAX_SHOWN = 20  # errors listed in one message
MAX_NAMES_SHOWN = 5  # files of each kind, or names
_DISK = "The disk or its server fails; see the system's log (`dmesg`)."
_DISK_ERRORS = (
    "EIO",
    "ENXIO",
    "ENODEV",
    "ESTALE",
    "ENOTCONN",
    "ETIMEDOUT",
    "EREMOTEIO",
    "EHOSTDOWN",
    "EUCLEAN",
    "EBADMSG",
)
_PERMISSION = "Give this user write permission."
LIMITS = {  # errors of the machine, by their number, and what to do
    errno.ENOMEM: "Lower runtime.num_workers, or raise the limit (`ulimit -v`, or the container's).",
    errno.EAGAIN: "Lower runtime.num_workers, or raise the limit of processes and threads (`ulimit -u`).",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n 4096`), or lower runtime.num_workers.",
    errno.ENFILE: "Close other programs: all together have too many open files (`sysctl fs.file-max`).",
    errno.ENOSPC: "Free some space (`df -h`) and inodes (`df -i`), also in /dev/shm, through which processes pass "
    "images (docker's --shm-size 8g).",
    errno.EDQUOT: "Free some of this user's quota.",
    errno.EFBIG: "Raise the limit of a file's size (`ulimit -f unlimited`).",
    errno.ENAMETOOLONG: "Shorten the name.",
    errno.EROFS: _PERMISSION,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    **{getattr(errno, name): _DISK for name in _DISK_ERRORS if hasattr(errno, name)},
}
_TEXTS = {os.strerror(number).lower(): number for number in LIMITS} | {  # of libraries whose errors have no number
    "can't allocate memory": errno.ENOMEM,
    "insufficient memory": errno.ENOMEM,
    "can't start new thread": errno.EAGAIN,
    "received 0 items of ancdata": errno.EMFILE,
}

Item = TypeVar("Item")
Result = TypeVar("Result")


class SesamError(Exception):
    """Bad input. The message says which file or key, what is wrong, what was expected, what to do."""


class DiskError(SesamError):
    """The disk is full or read-only: no further item can be written either."""


def raise_errors(messages: Sequence[str]) -> None:
    """One SesamError that lists the messages of all failed images, if there are any."""
    if len(messages) == 1:
        raise SesamError(messages[0])
    if messages:
        rest = [f"and {len(messages) - MAX_SHOWN} more"] if len(messages) > MAX_SHOWN else []
        raise SesamError("\n  ".join([f"{len(messages)} images failed:", *messages[:MAX_SHOWN], *rest]))


def summarize_names(names: Sequence[str]) -> str:
    """The number of names, and the first few."""
    return f"{len(names)} ({', '.join(names[:MAX_NAMES_SHOWN])}{', …' if names[MAX_NAMES_SHOWN:] else ''})"


def warn(subject: str, names: Iterable[str]) -> None:
    """Print a warning with the names of what it is about, if there are any."""
    if listed := list(names):
        print(f"warning: {subject}: {summarize_names(listed)}.", file=sys.stderr)


def try_item(function: Callable[[Item], Result], item: Item) -> Result | SesamError:
    """What the function returns, or the SesamError that it raises; a DiskError is raised."""
    try:
        return function(item)
    except DiskError:
        raise
    except SesamError as error:
        return error


def limit_reached(problem: BaseException) -> int | None:
    """The number in LIMITS of an error of the machine, also of a library's that has none; None for other errors."""
    if isinstance(problem, MemoryError):
        return errno.ENOMEM
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno if problem.errno in LIMITS else None
    text = _last_line(problem).lower()
    return next((number for known, number in _TEXTS.items() if known in text), None)


def _last_line(problem: BaseException) -> str:
    """Of what it says; an error from a DataLoader's process contains its whole traceback."""
    return (str(problem).strip().splitlines() or ["memory ran out"])[-1]


def describe_validation_error(problem: ValidationError, renamed: Mapping[str, str] | None = None) -> list[str]:
    """A line per error: the dotted key, what is wrong, the value. renamed: old keys and their new names."""
    lines = []
    for error in problem.errors():
        key, reason = ".".join(map(str, error["loc"])) or "(whole file)", error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            new = (renamed or {}).get(key)
            reason = f"renamed to {new}" if new else "unknown key; remove it or correct its spelling"
        elif error["type"] == "missing":
            reason = "missing"
        elif error["type"] in ("model_type", "dataclass_type"):  # pydantic would name the class
            reason = f"expected a mapping, got {error['input']!r:.60}"
        elif error["type"] != "value_error" or not isinstance(error["input"], Mapping):
            reason += f", got {error['input']!r:.60}"
        lines.append(reason if not error["loc"] and error["type"] == "value_error" else f"{key}: {reason}")
    return lines


def run_main(main: Callable[[], None]) -> None:
    """Run a stage's main(): a SesamError or a limit of the machine ends it with a message alone and exit code 1.

    In the context `around_main` of the program's package, if it has one.
    """
    spec, around_main = sys.modules["__main__"].__spec__, nullcontext
    if main.__module__ == "__main__" and spec is not None:
        # worker processes, Ray's too, find a stage's functions by their module's name; __main__ is another module there
        main = getattr(import_module(spec.name), main.__name__)
        around_main = getattr(sys.modules.get(spec.parent or ""), "around_main", nullcontext)
    try:
        with around_main():
            main()
    except SesamError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run again to resume")
    except BrokenPipeError:  # who read the output, as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush fails
        sys.exit(1)
    except Exception as problem:
        if (limit := limit_reached(problem)) is None:
            raise
        sys.exit(f"error: {_last_line(problem)}. {LIMITS[limit]} Then run again to resume.")
