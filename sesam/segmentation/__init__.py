"""The segmentation network, with mmsegmentation: data, loss, training, inference."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# what mmseg and mmengine import where it is installed, in half of their time: optimizers that are not used here, and
# timm, which few networks need
OPTIONAL = ("torch.distributed.optim", "transformers", "timm")


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Without these modules, unless they are imported already."""
    hidden: dict[str, Any] = dict.fromkeys(name for name in names if name not in sys.modules)
    sys.modules.update(hidden)  # None: cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


class _Timm:
    """timm, imported when it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("timm"), name)


with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), _hidden(*OPTIONAL):
    # at import mmcv and mmseg list the optional parts that are not installed; none of them is used here
    import mmseg.datasets  # noqa: F401  (registers its transforms)
    from mmseg.models.backbones import timm_backbone  # registers all networks

timm_backbone.timm = _Timm() if find_spec("timm") else None
