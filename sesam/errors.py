"""Errors for people: a message without a traceback, and exit code 1."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TypeVar

from pydantic import ValidationError

MAX_SHOWN = 20  # errors listed in one message

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


def try_item(function: Callable[[Item], Result], item: Item) -> Result | SesamError:
    """What the function returns, or the SesamError that it raises; a DiskError is raised."""
    try:
        return function(item)
    except DiskError:
        raise
    except SesamError as error:
        return error


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
        elif error["type"] != "value_error" or not isinstance(error["input"], Mapping):
            reason += f", got {error['input']!r:.60}"
        lines.append(reason if not error["loc"] and error["type"] == "value_error" else f"{key}: {reason}")
    return lines


def run_main(main: Callable[[], None]) -> None:
    """Run a stage's main(): a SesamError ends it with its message alone and exit code 1."""
    spec = sys.modules["__main__"].__spec__
    if main.__module__ == "__main__" and spec is not None:
        # worker processes, Ray's too, find a stage's functions by their module's name; __main__ is another module there
        main = getattr(import_module(spec.name), main.__name__)
    try:
        main()
    except SesamError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run again to resume")
