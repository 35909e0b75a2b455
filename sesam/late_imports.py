"""Imports without what they would import too, and what nothing here needs or few need."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


class LateModule(ModuleType):
    """A module that is imported when one of its functions or classes is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect asks every module for its file
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(import_module(self.__name__), name)(*args, **kwargs)


@contextlib.contextmanager
def late_imports(later: Sequence[str], never: Sequence[str] = ()) -> Iterator[None]:
    """Within it, modules that are not imported yet: LateModule for `later`, and `never` seem not to be installed."""
    modules: dict[str, Any] = {name: LateModule(name) for name in later} | dict.fromkeys(never)
    modules = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
