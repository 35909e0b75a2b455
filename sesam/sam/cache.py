"""Image embeddings on disk, keyed by the engine (weights, dtype, code, libraries) and the image's content.

A cache and nothing more: it is never pushed, and missing embeddings are computed again where they are needed.
"""

import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from sesam.artifacts.archives import check_stored
from sesam.artifacts.atomic_io import atomic_path, json_digest, reraise_disk_errors, sha256
from sesam.artifacts.fingerprint import code_fingerprint, library_versions
from sesam.artifacts.manifest import ImageRecord
from sesam.params import Params, Runtime, SamParams
from sesam.paths import EMBEDDINGS
from sesam.regular_files import open_regular
from sesam.sam.checkpoints import Weights
from sesam.sam.registry import get_model

EMBEDDING_NAME = re.compile(r"[0-9a-f]{64}\.npz")


def engine_fingerprint(sam: SamParams, weights: Weights) -> str:
    """The fingerprint of what decides an embedding besides its image."""
    config = weights.path and weights.path.with_name("config.json")  # transformers builds its models from it
    digest, code = sha256(config) if config and config.is_file() else "", code_fingerprint("embed", "sesam/sam")
    return json_digest(sam.model, sam.dtype, weights.sha256, code, library_versions(), digest)


def cache_dir(runtime: Runtime) -> Path:
    """`runtime.embedding_cache`, or data/embeddings of this clone, also in the directories of DVC experiments."""
    if runtime.embedding_cache is not None:
        return Path(runtime.embedding_cache)
    experiments = [folder for folder in Path.cwd().parents if folder.parts[-3:] == (".dvc", "tmp", "exps")]
    return experiments[0].parents[2] / EMBEDDINGS if experiments else EMBEDDINGS


class EmbeddingCache:
    """Embeddings of one engine fingerprint, float16, one file per image."""

    def __init__(self, engine: str, root: Path) -> None:
        self.engine, self.root, self.folder = engine, root, root / engine[:16]

    def __contains__(self, record: ImageRecord) -> bool:
        """Whether there is a complete file; `load` also verifies its check sum."""
        return is_zipfile(self._path(record))

    def load(self, record: ImageRecord) -> Tensor | None:
        """The cached embedding; None if it is missing or damaged."""
        try:
            with open_regular(self._path(record)) as file, np.load(file, allow_pickle=False) as archive:
                check_stored(archive.zip)
                return torch.from_numpy(archive["embedding"])
        except Exception:  # of many kinds, because the file may hold anything
            return None

    def save(self, record: ImageRecord, embedding: np.ndarray) -> None:
        """Write an embedding; on disk when this returns, unless another experiment evicts it meanwhile."""
        with suppress(FileNotFoundError), atomic_path(self._path(record)) as unfinished:
            np.savez(unfinished, embedding=embedding)  # not np.save: an archive has a check sum

    def reserve(self, records: Sequence[ImageRecord], embedding_bytes: int, limit_gb: float) -> tuple[bool, list[str]]:
        """Make room by `evict`; whether the embeddings of `records` may be kept, and lines that report it.

        SesamError if the folder cannot be written to.
        """
        total = embedding_bytes * len(records)
        with reraise_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        size = f"{len(records)} embeddings of {embedding_bytes / 1e6:.2g} MB, {total / 1e9:.2g} GB"
        if total > limit_gb * 1e9:
            return False, [
                f"{size}, are more than runtime.embedding_cache_gb ({limit_gb:g}): every round encodes again"
            ]
        lines = self.evict(records, total, limit_gb)
        free = shutil.disk_usage(self.folder).free
        if embedding_bytes * sum(record not in self for record in records) <= free:
            return True, [*lines, f"{size}, are kept in {self.folder}"]
        report = f"{size}, are more than the disk has free ({free / 1e9:.2g} GB): every round encodes again"
        return False, [*lines, report]

    def evict(self, records: Sequence[ImageRecord], total: int, limit_gb: float) -> list[str]:
        """Remove the oldest folders of other engines, then embeddings of other images; lines that report it."""
        candidates = sorted(self._evictable({self._path(record) for record in records}))
        excess = total + sum(size for _, _, size, _ in candidates) - limit_gb * 1e9
        report = Counter[str]()  # bytes by what became of them
        for current, _, size, path in candidates:
            if excess <= 0:
                break
            try:
                _remove(path)
            except OSError as problem:  # another experiment removes it or writes to it, or another user owns it
                if path.exists():
                    report[f"in {self.root} cannot be removed ({problem.strerror or problem})"] += size
                    continue
            excess -= size
            report["of other images removed" if current else f"of an earlier engine removed, {path}"] += size
        limit = f"runtime.embedding_cache_gb is {limit_gb:g}"
        return [f"{size / 1e9:.2g} GB {what}: {limit}" for what, size in report.items()]

    def _evictable(self, needed: Collection[Path]) -> Iterator[tuple[bool, float, int, Path]]:
        """Of this engine's files and the folders of others: whether of this engine, mtime, bytes, path."""
        for folder in filter(Path.is_dir, self.root.glob("[0-9a-f]" * 16)):  # of engines
            with suppress(FileNotFoundError):  # another experiment removes it, or a file in it
                files = [(path.stat(), path) for path in _embeddings(folder) if path not in needed]
                if folder == self.folder:
                    yield from [(True, stat.st_mtime, stat.st_size, path) for stat, path in files]
                elif files:
                    yield False, folder.stat().st_mtime, sum(stat.st_size for stat, _ in files), folder

    def _path(self, record: ImageRecord) -> Path:
        return self.folder / f"{record.sha256}.npz"


def _embeddings(folder: Path) -> list[Path]:
    """The files in a folder that are named as embeddings; others may be anybody's."""
    return [path for path in folder.iterdir() if EMBEDDING_NAME.fullmatch(path.name)]


def _remove(path: Path) -> None:
    """Remove an embedding, or all of a folder and the folder if nothing else is in it."""
    if not path.is_dir():
        path.unlink()
        return
    for file in _embeddings(path):
        file.unlink()
    with suppress(OSError):
        path.rmdir()


def open_cache(
    params: Params, weights: Weights, records: Sequence[ImageRecord]
) -> tuple[EmbeddingCache, bool, list[str]]:
    """The cache of the params' engine, and what `reserve` returns for the embeddings of `records`."""
    cache = EmbeddingCache(engine_fingerprint(params.sam, weights), cache_dir(params.runtime))
    embedding_bytes = get_model(params.sam.model).embedding_bytes
    return cache, *cache.reserve(records, embedding_bytes, params.runtime.embedding_cache_gb)
