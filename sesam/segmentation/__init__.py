"""The segmentation network, with mmsegmentation: data, loss, training, inference."""

import contextlib
import io
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sesam.late_imports import late_imports

# without these, the import of mmseg takes half of its time
OPTIONAL = ("torch.distributed.optim", "transformers", "timm")
LATER = (
    "mmengine.model.wrappers.fully_sharded_distributed",
    "mmengine._strategy.fsdp",
    "mmseg.utils.tokenizer",
)


class _Timm:
    """timm, imported when it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("timm"), name)


with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()), late_imports(LATER, OPTIONAL):
    # at import mmcv and mmseg list the optional parts that are not installed; none of them is used here
    import mmseg.datasets  # noqa: F401  (registers its transforms)
    from mmseg.models.backbones import timm_backbone  # registers all networks

timm_backbone.timm = _Timm() if find_spec("timm") else None
