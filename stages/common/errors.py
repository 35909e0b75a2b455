"""Errors for people: a message without a traceback, and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Callable


class SesamError(Exception):
    """Bad input. The message says which file or key, what is wrong, what was expected, what to do."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's main(): a SesamError ends it with its message alone and exit code 1."""
    try:
        main()
    except SesamError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run again to go on")
