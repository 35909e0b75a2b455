"""Image embeddings on disk, keyed by the engine (weights, precision and code) and the image's content.

The folder is a cache and nothing more: it is never pushed, and whatever is
missing is computed again where it is needed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.common.dataset import Item
from stages.common.files import UNFINISHED, whole


class EmbeddingCache:
    """Embeddings of one engine fingerprint, float16, one file an image."""

    def __init__(self, engine: str, root: Path = Path("data/embeddings")) -> None:
        self.folder = root / engine[:16]

    def __contains__(self, item: Item) -> bool:
        return self._load(item, "r") is not None

    def load(self, item: Item) -> Tensor | None:
        """The cached embedding, or None if there is no whole one."""
        found = self._load(item)
        return None if found is None else torch.from_numpy(found)

    def save(self, item: Item, embedding: np.ndarray) -> None:
        """Keep an embedding; on disk when this returns."""
        with whole(self._path(item)) as beside:
            np.save(beside, embedding)

    def room_for(self, items: Sequence[Item], each: int, limit_gb: float) -> tuple[bool, str]:
        """Whether the embeddings of `items`, `each` bytes, may be kept, and a line that says so with their size."""
        for left in self.folder.glob(f"{UNFINISHED}*"):  # by a killed process
            left.unlink()
        total, missing = each * len(items), each * sum(item not in self for item in items)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        size = f"{len(items)} embeddings of {each / 1e6:.2g} MB, {total / 1e9:.2g} GB"
        if total > limit_gb * 1e9:
            return False, f"{size}, are more than runtime.cache_gb ({limit_gb:g}): not kept, every round encodes anew"
        if missing > free:
            return False, f"{size}, are more than the disk has free ({free / 1e9:.2g} GB): every round encodes anew"
        return True, f"{size}, are kept in {self.folder}"

    def _load(self, item: Item, mmap_mode: str | None = None) -> np.ndarray | None:
        try:
            return np.load(self._path(item), mmap_mode, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def _path(self, item: Item) -> Path:
        return self.folder / f"{item.sha256}.npy"
