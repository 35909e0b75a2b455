"""Files appear whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4
from zipfile import ZipFile

from sesam.artifacts.archives import pack, path_to_delete, read_packed
from sesam.errors import DiskError, SesamError

MULTI_NODE = "SESAM_SEVERAL_MACHINES"  # set where processes of other machines may write to the same folders
TMP_PREFIX = ".unfinished-"  # how the names of files that are being written begin
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def reraise_disk_errors(path: Path) -> Iterator[None]:
    """A full, read-only or forbidden disk as a DiskError that names `path`."""
    try:
        yield
    except OSError as problem:
        if problem.errno is not None and problem.errno not in DISK_ERRNOS:
            raise  # np.save's on a full disk has no number
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(existing).free / 1e9
        raise DiskError(
            f"{path} cannot be written: {problem.strerror or problem}; {existing} has {free:.2g} GB free. Nothing of "
            "it was written. Make room, or let this user write there, and run again."
        ) from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; moved onto `path` when the block ends without error.

    SesamError if the disk is full or may not be written to.
    """
    with reraise_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_tmp(path.parent.absolute())
        unfinished = path.parent / f"{TMP_PREFIX}{uuid4().hex}{path.suffix}"
        # a new file has the mode that the umask leaves; mkstemp makes private ones
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _LOCKS.add(descriptor)
        try:
            with suppress(OSError):  # network file systems may have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            _LOCKS.discard(descriptor)
            os.close(descriptor)
            with suppress(OSError):  # it cannot be told what would hide why it was not written
                unfinished.unlink(missing_ok=True)


@cache  # once in a process
def remove_stale_tmp(folder: Path) -> None:
    """Remove the unfinished files that killed processes left in a folder; those of living ones are locked."""
    if MULTI_NODE in os.environ:  # a lock may not be seen on another one
        return
    for left in folder.glob(f"{TMP_PREFIX}*"):
        with suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def find_corruption(file: Path | BinaryIO) -> str | None:
    """What check sums tell to be damaged in a file that torch.save wrote, over which torch reads; None if nothing."""
    try:
        with ZipFile(file) as archive:
            member = archive.testzip()
    except Exception as problem:  # of many kinds, for the file may hold anything
        return str(problem) or type(problem).__name__
    return None if member is None else f"{member} in it is damaged"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV, with quotes where a cell needs them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def read_bytes(path: Path) -> bytes:
    """What a file holds, also one that was packed with its artifact.

    SesamError if it is missing, cannot be read, or is no file (a pipe would never end).
    """
    try:
        if path.exists() and not path.is_file():
            raise SesamError(f"{path} is no file. Remove it, and put the file there.")
        return path.read_bytes()
    except FileNotFoundError:
        if (packed := read_packed(path)) is not None:
            return packed
        raise SesamError(f"{path} is missing. Run `dvc repro`, or `dvc pull` if a colleague has made it.") from None
    except OSError as problem:
        raise SesamError(f"{path} cannot be read ({problem.strerror}).") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file; SesamError if it is missing or damaged."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as problem:
        raise SesamError(
            f"{path} cannot be read as JSON ({problem}). Delete {path_to_delete(path)} and run `dvc repro`."
        ) from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_digest(*parts: Any) -> str:
    """Hex digest of JSON-serializable parts: equal parts, equal fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_file(folder: Path) -> Path:
    """Where it stands what an unfinished folder is made of: beside it, for the folder becomes the artifact."""
    return folder.with_name(f"{folder.name}.made_of.partial")


def resume_or_reset(folder: Path, made_of: Mapping[str, str]) -> None:
    """Keep what an interrupted run left in `folder` if it was made of the same; else empty it, saying what changed.

    made_of: of each thing that decides the result a digest, see `sesam.artifacts.fingerprint`.
    """
    mark = fingerprint_file(folder)
    if mark.exists():
        before = read_json(mark)
        if before == made_of:
            return
        changed = [name for name in {**before, **made_of} if before.get(name) != made_of.get(name)]
        print(f"{folder} begins anew: since it was interrupted, {', '.join(changed)} changed", flush=True)
        mark.unlink()  # first: what is half removed is not to be gone on with
    _empty(folder)
    write_json(mark, made_of)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """`folder`, made if it is not there, for this process alone; SesamError if another has it.

    The lock is the system's, on the folder itself: it ends with the process, however that ends. Where the file system
    has no such locks, nothing is locked.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SesamError(
                f"{folder} is being filled by another process. Wait until that has ended, or stop it, and run again."
            ) from None
        except OSError:  # network file systems lock no folder: there two at once go unnoticed
            break
        if folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor)):
            break
        os.close(descriptor)  # another process had just finished it, and moved it to its place
    _LOCKS.add(descriptor)
    try:
        yield
    finally:
        _LOCKS.discard(descriptor)
        os.close(descriptor)


_LOCKS: set[int] = set()


def _release_in_child() -> None:
    """A forked worker that outlives a killed parent would hold its lock."""
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_release_in_child)


def _remove_tmp(folder: Path) -> None:
    for left in folder.rglob(f"{TMP_PREFIX}*"):
        left.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def atomic_directory(path: Path, made_of: Mapping[str, str] | None = None, packed: bool = False) -> Iterator[Path]:
    """A folder beside `path` to fill; takes the place of `path` when the block ends without error.

    packed: its files in a few archives, out of which `read_bytes` reads them.

    Empty, unless an interrupted call with the same fingerprint left its files in it: see `resume_or_reset`. SesamError
    if another process fills it.
    """
    unfinished, before = path.parent / f".{path.name}.partial", path.parent / f".{path.name}.before.partial"
    with reraise_disk_errors(path), exclusive_lock(unfinished):
        if made_of is None:
            _empty(unfinished)
        else:
            resume_or_reset(unfinished, made_of)
        _remove_tmp(unfinished)  # by a killed process
        try:
            yield unfinished
            _remove_tmp(unfinished)  # by workers that were killed and replaced
            done = unfinished
            if packed:
                done = path.parent / f".{path.name}.packed.partial"
                shutil.rmtree(done, ignore_errors=True)
                done.mkdir()
                pack(unfinished, done)
            shutil.rmtree(before, ignore_errors=True)
            if path.exists():
                path.replace(before)  # killed while it removes thousands of files, it would leave half of them
            done.replace(path)
            fingerprint_file(unfinished).unlink(missing_ok=True)  # not earlier: it is what lets a killed run go on
            shutil.rmtree(before, ignore_errors=True)
            if packed:
                shutil.rmtree(unfinished, ignore_errors=True)
        finally:
            if made_of is None:
                shutil.rmtree(unfinished, ignore_errors=True)
