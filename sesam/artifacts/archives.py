"""Many small files of an artifact in a few archives, which DVC tracks and pushes far faster.

An artifact's folder holds files-0000.zip, files-0001.zip, …, of FILES files each, in the order of their names, not
compressed, without dates or modes. Equal files make equal archives, whoever wrote them and in whatever order.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from sesam.errors import SesamError

FILES_PER_ARCHIVE = 1000  # an archive
_FIRST, _EMPTY = b"PK\3\4", b"PK\5\6"  # how an archive with files begins, and one without
_HEADER = struct.Struct("<26xHH")  # before a file's name and extra field: their lengths end it


def pack(folder: Path, into: Path) -> None:
    """Archives of all files below `folder` in the empty folder `into`, on disk when this returns."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for k in range(0, len(names) or 1, FILES_PER_ARCHIVE):
        with (into / f"files-{k // FILES_PER_ARCHIVE:04d}.zip").open("wb") as file:
            with ZipFile(file, "w", ZIP_STORED) as archive:
                for name in names[k : k + FILES_PER_ARCHIVE]:
                    archive.writestr(ZipInfo(name), (folder / name).read_bytes())
            file.flush()
            os.fsync(file.fileno())


def read_packed(path: Path) -> bytes | None:
    """What a file holds that was packed with its artifact; None if it was not. SesamError if the archive is damaged."""
    for folder in path.parents:
        first = folder / "files-0000.zip"
        if first.exists():
            begins, archives = _archives(folder, first.stat().st_mtime_ns)
            name = path.relative_to(folder).as_posix()
            k = bisect_right(begins, name) - 1
            place = _members(archives[k], archives[k].stat().st_mtime_ns).get(name) if k >= 0 else None
            return _read(place) if place else None
    return None


def path_to_delete(path: Path) -> str:
    """What to delete to have a damaged file made again, in words: it, or the folder whose archives hold it."""
    if not path.exists():
        for folder in path.parents:
            if (folder / "files-0000.zip").exists():
                return str(folder)
    return "it"


class _Member(NamedTuple):
    """Where a file lies in an archive. Not a ZipFile: a forked worker would share its place in the file."""

    archive: Path
    start: int
    size: int
    check: int


@lru_cache(16)
def _archives(folder: Path, written: int) -> tuple[list[str], list[Path]]:
    """The archives of a folder in the order of their first files' names, and these."""
    begins: list[tuple[str, Path]] = []
    for path in folder.glob("files-*.zip"):
        try:
            with path.open("rb") as file:
                header = file.read(_HEADER.size)
                if header[: len(_FIRST)] == _FIRST and len(header) == _HEADER.size:
                    length, _ = _HEADER.unpack(header)
                    begins.append((file.read(length).decode(), path))
                elif header[: len(_EMPTY)] != _EMPTY:
                    raise ValueError("it is no archive")
        except (OSError, ValueError) as problem:
            raise _damaged(path, str(problem)) from None
    begins.sort()
    return [name for name, _ in begins], [path for _, path in begins]


@lru_cache(64)  # archives: so that a process holds a few of them, however many there are
def _members(path: Path, written: int) -> dict[str, _Member]:
    """Where the files of an archive lie."""
    found = {}
    try:
        with ZipFile(path) as archive:
            length = path.stat().st_size
            for one in archive.infolist():
                if one.compress_type != ZIP_STORED:
                    raise BadZipFile(f"{one.filename} is compressed")
                if not 0 <= one.header_offset <= one.header_offset + one.file_size <= length:
                    raise BadZipFile(f"{one.filename} would lie outside of it")
                found[one.filename] = _Member(path, one.header_offset, one.file_size, one.CRC)
    except (BadZipFile, OSError, NotImplementedError, ValueError) as problem:
        raise _damaged(path, str(problem)) from None
    return found


def _read(place: _Member) -> bytes:
    try:
        with place.archive.open("rb") as file:
            file.seek(place.start)
            header = file.read(_HEADER.size)
            if len(header) == _HEADER.size:
                file.seek(sum(_HEADER.unpack(header)), 1)
            content = file.read(place.size)
    except OSError as problem:
        raise _damaged(place.archive, str(problem.strerror)) from None
    if zlib.crc32(content) != place.check:
        raise _damaged(place.archive, "its check sums do not fit")
    return content


def _damaged(path: Path, reason: str) -> SesamError:
    return SesamError(f"{path} is damaged ({reason}). Delete it and run `dvc repro`.")
