"""Image embeddings on disk, keyed by the engine (weights and code) and the image's content.

The folder is a cache and nothing more: it is never pushed, and whatever is
missing is computed again where it is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.common.dataset import Item
from stages.common.files import whole
from stages.common.labels import read_image
from stages.sam.models import Segmenter


class EmbeddingCache:
    """Embeddings of one engine fingerprint, float16, one file an image."""

    def __init__(self, engine: str, root: Path = Path("data/embeddings")) -> None:
        self.folder = root / engine[:16]

    def __contains__(self, item: Item) -> bool:
        return self.load(item, mmap_mode="r") is not None

    def load(self, item: Item, mmap_mode: str | None = None) -> np.ndarray | None:
        """The cached embedding, or None if there is no whole one. `mmap_mode` as in np.load."""
        try:
            return np.load(self._path(item), mmap_mode, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None

    def compute(self, segmenter: Segmenter, item: Item) -> np.ndarray:
        """Encode an image; its embedding is on disk when this returns."""
        embedding = segmenter.encode(read_image(Path(item.image)))
        with whole(self._path(item)) as beside:
            np.save(beside, embedding)
        return embedding

    def _path(self, item: Item) -> Path:
        return self.folder / f"{item.sha256}.npy"
