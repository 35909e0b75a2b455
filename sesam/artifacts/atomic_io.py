"""Atomic writes: a file or folder appears complete or not at all. And reading, with messages for people."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4
from zipfile import ZipFile

from sesam.artifacts.archives import check_stored, pack, path_to_delete, read_packed
from sesam.errors import LIMITS, DiskError, SesamError, limit_reached
from sesam.regular_files import open_regular, read_regular

MULTI_NODE = "SESAM_MULTI_NODE"  # environment variable, set where other machines may write to the same folders
MARKER = ".sesam"  # in a folder that a command wrote, see `claim_folder`
TMP_PREFIX = ".tmp-"  # of the names of files that are being written; .gitignore and .dvcignore list it
FORMULA = ("=", "+", "-", "@")  # what these begin, a spreadsheet computes


@contextmanager
def reraise_disk_errors(path: Path) -> Iterator[None]:
    """DiskError that names `path` where the disk is full, read-only or forbidden, or another limit is reached."""
    try:
        yield
    except (NotADirectoryError, FileExistsError):
        file = next((part for part in path.absolute().parents if part.is_file()), None)
        if file is None:
            raise
        raise SesamError(f"{path} cannot be written: {file} is a file. Replace it with a folder.") from None
    except OSError as problem:
        # NumPy's error on a full disk has no number
        limit = limit_reached(problem) or (errno.ENOSPC if problem.errno is None else None)
        if limit is None:
            raise
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(existing).free / 1e9
        raise DiskError(
            f"{path} cannot be written: {problem.strerror or problem}; {existing} has {free:.2g} GB free. No part of "
            f"it was written. {LIMITS[limit]} Then run again."
        ) from None


def check_no_link(path: Path) -> None:
    """SesamError if a folder to write to, or one around it in this repository, is a link or a file."""
    here = Path.cwd()
    for part in (path.absolute(), *path.absolute().parents):
        if here in part.parents and (part.is_symlink() or part.is_file()):
            kind = f"link, and {path} would be written behind it" if part.is_symlink() else "file"
            raise SesamError(f"{part} is a {kind}. Replace it with a folder.")


def claim_folder(folder: Path, command: str) -> None:
    """Mark a folder as one that a command writes to, so that it may replace its own files; SesamError for others'."""
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise SesamError(f"{folder} is a file. Name another folder (--out).")
    others = folder.is_dir() and any(folder.iterdir())
    if others and not (marker.is_file() and marker.read_text(encoding="utf-8").strip() == command):
        raise SesamError(f"{folder} has files that {command} did not write. Name a new folder (--out).")
    write_text(marker, f"{command}\n")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, moved there when the block ends without error; DiskError for a full disk."""
    check_no_link(path.parent)
    if path.is_dir() and not path.is_symlink():  # a link is replaced
        raise SesamError(f"{path} is a folder; a file would be written there. Remove it.")
    with reraise_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_tmp(path.parent.absolute())
        tmp = path.parent / f"{TMP_PREFIX}{uuid4().hex}{path.suffix}"
        descriptor = os.open(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # with the umask; mkstemp's are private
        _LOCKS.add(descriptor)
        try:
            with suppress(OSError):  # network file systems may have no locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield tmp
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            _note_written(path, tmp)
            tmp.replace(path)
        finally:
            _LOCKS.discard(descriptor)
            os.close(descriptor)
            with suppress(OSError):  # would hide why the file was not written
                tmp.unlink(missing_ok=True)


@cache  # once per process
def remove_stale_tmp(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder; those of running ones are locked."""
    if MULTI_NODE in os.environ:  # locks of another machine may be invisible
        return
    for tmp in folder.glob(f"{TMP_PREFIX}*"):
        with suppress(OSError, SesamError), open_regular(tmp) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tmp.unlink()


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def find_corruption(file: Path | BinaryIO) -> str | None:
    """What is corrupt in a file that torch.save wrote, by its checksums, which torch ignores; None if nothing is."""
    try:
        with ZipFile(file) as archive:
            check_stored(archive)
            member = archive.testzip()
    except Exception as problem:  # of any kind, because the file may hold anything
        if limit_reached(problem) is not None:
            raise
        return str(problem) or type(problem).__name__
    return None if member is None else f"{member} in it is damaged"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV, with quotes where a cell needs them; text that a spreadsheet would compute begins with '."""
    text = io.StringIO()
    cells = ([f"'{x}" if isinstance(x, str) and x.startswith(FORMULA) else x for x in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    return text.getvalue()


def csv_path(path: str) -> str:
    """A relative path as a cell of `csv_text`: one that leads to the same file, and begins no formula."""
    return f"./{path}" if path.startswith(FORMULA) else path


def read_bytes(path: Path) -> bytes:
    """The content of a file, also of a packed one; SesamError if it is missing, unreadable or not a regular file."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        if (packed := read_packed(path)) is not None:
            return packed
        raise SesamError(f"{path} is missing. Run `dvc repro`, or `sesam pull` if a colleague has pushed it.") from None
    except OSError as problem:
        raise SesamError(f"{path} cannot be read ({problem.strerror}).") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file; SesamError if it is missing or damaged."""
    content = read_bytes(path)
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as problem:
        raise SesamError(
            f"{path} cannot be read as JSON ({problem}). Delete {path_to_delete(path)} and run `dvc repro`."
        ) from None


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text; ValueError for keys that stand twice, NaN and infinity, which JSON does not have."""
    return json.loads(content, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.60} stands twice")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serializable parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def fingerprint_file(folder: Path) -> Path:
    """The file with the fingerprint of an unfinished folder: beside it, because the folder becomes the artifact."""
    return folder.with_name(f"{folder.name}.fingerprint.partial")


def _written_file(folder: Path) -> Path:
    """The digests of the files that were written to a folder that can be resumed: beside it, as its fingerprint."""
    return folder.with_name(f"{folder.name}.written.partial")


def _note_written(path: Path, content: Path) -> None:
    """Note the digest of a file before it appears in a folder that can be resumed."""
    for folder in path.parents:
        if folder.name.endswith(".partial") and (file := _written_file(folder)).exists():
            # whole lines, whichever process appends, and also after half a line on a full disk
            with file.open("ab", buffering=0) as lines:
                lines.write(f"\n{sha256(content)} {path.relative_to(folder).as_posix()}\n".encode())


def _remove_unverified(folder: Path) -> None:
    """Remove the files that the interrupted run did not write, or not as they are now."""
    file = _written_file(folder)
    written = set(file.read_text(encoding="utf-8", errors="replace").splitlines()) if file.exists() else set()
    lines = {}
    for path in (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()):
        regular = path.is_file() and not path.is_symlink()
        lines[path] = f"{sha256(path)} {path.relative_to(folder).as_posix()}" if regular else None
    if wrong := [path for path, line in lines.items() if line not in written]:
        print(f"{folder}: {len(wrong)} files are not as the interrupted run wrote them, and are made again", flush=True)
        for path in wrong:
            path.unlink()
    write_text(file, "".join(f"{line}\n" for line in lines.values() if line in written))


def resume_or_reset(folder: Path, fingerprint: Mapping[str, str]) -> None:
    """Keep what an interrupted run left in `folder` if its fingerprint was the same; else empty it.

    fingerprint: a digest per input that decides the result, see `sesam.artifacts.fingerprint`.
    """
    file = fingerprint_file(folder)
    if file.exists():
        before = read_json(file)
        if before == fingerprint:
            return
        changed = [key for key in {**before, **fingerprint} if before.get(key) != fingerprint.get(key)]
        print(f"{folder}: restarting from scratch: {', '.join(changed)} changed since the interruption", flush=True)
        file.unlink()  # first: a half-emptied folder must not be resumed
    _empty(folder)
    write_json(file, fingerprint)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Create `folder` if needed and lock it for this process; SesamError if another process holds it.

    The lock is the system's, on the folder itself: it ends with the process. File systems without locks lock nothing.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SesamError(
                f"{folder} is being written by another process. Wait for that, or stop it, and run again."
            ) from None
        except OSError:  # network file systems do not lock folders
            break
        if folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor)):
            break
        os.close(descriptor)  # another process has just finished the folder and moved it
    _LOCKS.add(descriptor)
    try:
        yield
    finally:
        _LOCKS.discard(descriptor)
        os.close(descriptor)


_LOCKS: set[int] = set()


def _release_in_child() -> None:
    """Otherwise a forked worker that outlives a killed parent keeps its lock."""
    for descriptor in _LOCKS:
        os.close(descriptor)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_release_in_child)


def _remove_tmp(folder: Path) -> None:
    for tmp in folder.rglob(f"{TMP_PREFIX}*"):
        tmp.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def atomic_directory(path: Path, fingerprint: Mapping[str, str] | None = None, packed: bool = False) -> Iterator[Path]:
    """A folder beside `path` to fill; replaces `path` when the block ends without error.

    It is empty, unless an interrupted call with the same fingerprint left files in it: see `resume_or_reset`. Those
    that `atomic_path` wrote, and that nobody has changed since, are kept.
    packed: store its files in a few archives, from which `read_bytes` reads them. SesamError if another process
    writes it.
    """
    check_no_link(path)
    tmp = path.parent / f".{path.name}.partial"
    check_no_link(tmp)
    with reraise_disk_errors(path), exclusive_lock(tmp):
        if fingerprint is None:
            _empty(tmp)
        else:
            resume_or_reset(tmp, fingerprint)
        _remove_tmp(tmp)  # of a killed process
        if fingerprint is not None:
            _remove_unverified(tmp)
        try:
            yield tmp
            _remove_tmp(tmp)  # of workers that were killed and replaced
            _publish(tmp, path, packed)
        except BaseException:  # published, its name is another process's
            if fingerprint is None:
                shutil.rmtree(tmp, ignore_errors=True)
            raise


def _publish(tmp: Path, path: Path, packed: bool) -> None:
    """Move the folder `tmp`, or the archives of its files, to `path`."""
    done, previous = tmp, path.parent / f".{path.name}.previous.partial"
    if packed:
        done = path.parent / f".{path.name}.packed.partial"
        shutil.rmtree(done, ignore_errors=True)
        done.mkdir()
        pack(tmp, done)
    shutil.rmtree(previous, ignore_errors=True)
    if path.exists():
        path.replace(previous)  # removing it in place could be interrupted, and leave half of it
    done.replace(path)
    for file in (fingerprint_file(tmp), _written_file(tmp)):  # not earlier: an interrupted run resumes with them
        file.unlink(missing_ok=True)
    shutil.rmtree(previous, ignore_errors=True)
    if packed:
        shutil.rmtree(tmp, ignore_errors=True)
