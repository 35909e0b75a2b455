"""Errors for people: a message without a traceback, and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

from pydantic import ValidationError

MAX_SHOWN = 20  # of many bad items


class SesamError(Exception):
    """Bad input. The message says which file or key, what is wrong, what was expected, what to do."""


class DiskError(SesamError):
    """Nothing more can be written, of this item or another."""


class ErrorCollector:
    """Those of many that failed, to be told together when the others are done."""

    def __init__(self) -> None:
        self.first: list[SesamError] = []
        self.number = 0

    def add(self, problem: SesamError) -> None:
        self.number += 1
        if self.number <= MAX_SHOWN:
            self.first.append(problem)

    def raise_if_any(self) -> None:
        """SesamError with what was added, if anything was."""
        if self.number == 1:
            raise self.first[0]
        if self.number:
            rest = [f"and {self.number - MAX_SHOWN} more"] if self.number > MAX_SHOWN else []
            raise SesamError("\n  ".join([f"{self.number} images failed:", *map(str, self.first), *rest]))


def describe_validation_error(problem: ValidationError, renamed: Mapping[str, str] | None = None) -> list[str]:
    """A line per error: the dotted key, what is wrong, the value. renamed: old keys and their new names."""
    lines = []
    for error in problem.errors():
        key = ".".join(map(str, error["loc"])) or "(whole file)"
        if new := (renamed or {}).get(key) if error["type"] == "extra_forbidden" else None:
            reason = f"renamed to {new}"
        elif error["type"] == "extra_forbidden":
            reason = "unknown key; remove it or correct its spelling"
        elif error["type"] == "missing":
            reason = "missing"
        elif error["type"] == "value_error" and isinstance(error["input"], Mapping):
            reason = error["msg"].removeprefix("Value error, ")
        else:
            reason = f"{error['msg'].removeprefix('Value error, ')}, got {error['input']!r:.60}"
        lines.append(f"{key}: {reason}")
    return lines


def run_main(main: Callable[[], None]) -> None:
    """Run a stage's main(): a SesamError ends it with its message alone and exit code 1."""
    spec = sys.modules["__main__"].__spec__
    if main.__module__ == "__main__" and spec is not None:
        # other processes, Ray's too, find the stage's functions by their module's name, which is not __main__ there
        main = getattr(import_module(spec.name), main.__name__)
    try:
        main()
    except SesamError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run again to go on")
