"""Weak labels to semantic pseudo-labels with Segment Anything: the library behind the stages.

`sesam.pseudo_label` and `sesam.load_sam` are the method for one image; see sesam/api.py.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sesam.api import PseudoLabel, load_sam, pseudo_label

__all__ = ["PseudoLabel", "load_sam", "pseudo_label"]

# PyTorch reads it when it first makes a large tensor: huge pages save a page fault every 4 KiB
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    if name in __all__:
        from sesam import api  # imports PyTorch, which `import sesam` does not need

        return getattr(api, name)
    raise AttributeError(f"module 'sesam' has no attribute {name!r}")
