"""Image embeddings on disk, keyed by the engine (weights, precision, code, libraries) and the image's content.

The folder is a cache and nothing more: it is never pushed, and whatever is
missing is computed again where it is needed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sesam.artifacts.atomic_io import atomic_path, json_digest, reraise_disk_errors, sha256
from sesam.artifacts.fingerprint import code_fingerprint, library_versions
from sesam.artifacts.manifest import ImageRecord
from sesam.params import Runtime, SamParams
from sesam.paths import EMBEDDINGS
from sesam.sam.checkpoints import resolve_weights
from sesam.sam.registry import get_model

ENGINE = re.compile("[0-9a-f]{16}")  # a folder of embeddings: how its engine's fingerprint begins


def engine_fingerprint(sam: SamParams) -> str:
    """The fingerprint of what decides an embedding besides its image."""
    weights, digest = resolve_weights(sam)
    decisive = [sam.model, sam.precision, digest, code_fingerprint("embed", "sesam/sam"), library_versions()]
    if weights is not None and get_model(sam.model).needs_checkpoint:  # it is built by a library, of the file beside it
        config = weights.with_name("config.json")
        decisive.append(sha256(config) if config.is_file() else "")
    return json_digest(*decisive)


def cache_dir(runtime: Runtime) -> Path:
    """`runtime.embedding_cache`, or data/embeddings of this checkout, also for DVC's experiments in folders of their own."""
    if runtime.embedding_cache is not None:
        return Path(runtime.embedding_cache)
    for folder in Path.cwd().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2] / EMBEDDINGS
    return EMBEDDINGS


class EmbeddingCache:
    """Embeddings of one engine fingerprint, float16, one file an image."""

    def __init__(self, engine: str, root: Path) -> None:
        self.root, self.folder = root, root / engine[:16]

    def __contains__(self, item: ImageRecord) -> bool:
        """Whether there is one; whether it is whole, `load_trace` tells."""
        try:
            with np.load(self._path(item)) as archive:
                return "embedding" in archive.files
        except Exception:  # of many kinds, for the file may hold anything
            return False

    def load(self, item: ImageRecord) -> Tensor | None:
        """The cached embedding, or None if there is none that is whole by its check sum."""
        try:
            with np.load(self._path(item), allow_pickle=False) as archive:
                found = archive["embedding"]
        except Exception:
            return None
        return torch.from_numpy(found) if found.dtype.kind in "fiu" else None

    def save(self, item: ImageRecord, embedding: np.ndarray) -> None:
        """Keep an embedding; on disk when this returns, unless another experiment makes room meanwhile."""
        with suppress(FileNotFoundError), atomic_path(self._path(item)) as unfinished:
            np.savez(unfinished, embedding=embedding)  # not np.save: an archive has a check sum

    def reserve(self, items: Sequence[ImageRecord], each: int, limit_gb: float) -> tuple[bool, list[str]]:
        """Whether the embeddings of `items`, `each` bytes, may be kept, and lines that say so with their size.

        What else lies in the cache is removed until all embeddings together take no more than the limit: first, oldest
        first, what other engines left, then what this one has of other images.
        SesamError if the folder cannot be written to.
        """
        total, missing = each * len(items), each * sum(item not in self for item in items)
        with reraise_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        size = f"{len(items)} embeddings of {each / 1e6:.2g} MB, {total / 1e9:.2g} GB"
        if total > limit_gb * 1e9:
            return False, [
                f"{size}, are more than runtime.embedding_cache_gb ({limit_gb:g}): not kept, every round encodes anew"
            ]
        lines = self.evict(items, total, limit_gb)
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            lines.append(f"{size}, are more than the disk has free ({free / 1e9:.2g} GB): every round encodes anew")
            return False, lines
        return True, [*lines, f"{size}, are kept in {self.folder}"]

    def evict(self, items: Sequence[ImageRecord], total: int, limit_gb: float) -> list[str]:
        """Remove what is not of `items` until the rest and their `total` bytes keep to the limit; lines that say so."""
        needed = {self._path(item) for item in items}
        spare = []  # of what may go: whether it is this engine's, how old, bytes, path
        for folder in self.root.iterdir():
            if ENGINE.fullmatch(folder.name) and folder.is_dir():
                with suppress(FileNotFoundError):  # another experiment removes it, or a file in it
                    files = [(file.stat(), file) for file in folder.iterdir() if file not in needed]
                    if folder == self.folder:
                        spare += [(True, about.st_mtime, about.st_size, file) for about, file in files]
                    else:
                        size = sum(about.st_size for about, _ in files)
                        spare.append((False, folder.stat().st_mtime, size, folder))
        over, lines, removed = total + sum(size for _, _, size, _ in spare) - limit_gb * 1e9, [], 0
        stays = dict[str, int]()  # by reason, bytes
        for ours, _, size, path in sorted(spare):
            if over <= 0:
                break
            try:
                path.unlink() if ours else shutil.rmtree(path)
            except OSError as problem:  # another experiment removes it, or writes to it; or it is another user's
                if path.exists():
                    reason = problem.strerror or str(problem)
                    stays[reason] = stays.get(reason, 0) + size
                    continue
            over -= size
            if ours:
                removed += size
            else:
                lines.append(
                    f"removed {path}, {size / 1e9:.2g} GB of an earlier engine: runtime.embedding_cache_gb is {limit_gb:g}"
                )
        if removed:
            lines.append(f"removed {removed / 1e9:.2g} GB of other images: runtime.embedding_cache_gb is {limit_gb:g}")
        for reason, size in stays.items():
            lines.append(
                f"{size / 1e9:.2g} GB in {self.root} cannot be removed ({reason}): above runtime.embedding_cache_gb"
            )
        return lines

    def _path(self, item: ImageRecord) -> Path:
        return self.folder / f"{item.sha256}.npz"
