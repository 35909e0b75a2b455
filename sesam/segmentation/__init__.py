"""The segmentation network, with mmsegmentation: data, loss, training, inference."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# what mmseg and mmengine import where it is installed, and only optimizers and networks need that are not used here
OPTIONAL = ("torch.distributed.optim", "transformers", "timm")
# what they import always: FSDP with torch.distributed's tensors and sympy, and the tokenizer of CLIP
LATER = (
    "mmengine.model.wrappers.fully_sharded_distributed",
    "mmengine._strategy.fsdp",
    "mmseg.utils.tokenizer",
)


class _Later(ModuleType):
    """A module that is imported when one of its functions or classes is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # inspect asks every module for its file
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(import_module(self.__name__), name)(*args, **kwargs)


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Without these modules, unless they are imported already: they take half of the time that mmseg's import takes."""
    modules: dict[str, Any] = {name: None for name in OPTIONAL}  # None: cannot be imported
    modules |= {name: _Later(name) for name in LATER}
    modules = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


class _Timm:
    """timm, imported when it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("timm"), name)


with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), _stand_ins():
    # at import mmcv and mmseg list the optional parts that are not installed; none of them is used here
    import mmseg.datasets  # noqa: F401  (registers its transforms)
    from mmseg.models.backbones import timm_backbone  # registers all networks

timm_backbone.timm = _Timm() if find_spec("timm") else None
