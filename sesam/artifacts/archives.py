"""Many small files of an artifact in a few archives, which DVC tracks and pushes far faster.

An artifact's folder holds files-0000.zip, files-0001.zip, … of FILES_PER_ARCHIVE files each, sorted by name, without
compression, dates or modes. Equal files make equal archives, in whatever order they were written.
"""

import os
import struct
import zlib
from bisect import bisect_right
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo, is_zipfile

from sesam.artifacts.dvc_outputs import find_damaged_objects
from sesam.errors import SesamError, limit_reached
from sesam.regular_files import open_regular

FILES_PER_ARCHIVE = 1000
# of a member: its CRC-32 and size; the lengths of the name and of the extra field that follow
_HEADER = struct.Struct("<14xI4xIHH")


def pack(folder: Path, into: Path) -> None:
    """Write archives of all files below `folder` to the empty folder `into`, and flush them to disk."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for k in range(0, len(names) or 1, FILES_PER_ARCHIVE):
        with (into / f"files-{k // FILES_PER_ARCHIVE:04d}.zip").open("wb") as file:
            with ZipFile(file, "w", ZIP_STORED) as archive:
                for name in names[k : k + FILES_PER_ARCHIVE]:
                    archive.writestr(ZipInfo(name), (folder / name).read_bytes())
            file.flush()
            os.fsync(file.fileno())


def read_packed(path: Path) -> bytes | None:
    """The content of a file that was packed with its artifact; None if it was not. SesamError if it is corrupt."""
    for folder in path.parents:
        first = folder / "files-0000.zip"
        if first.exists():
            begins, archives = _archives(folder, first.stat().st_mtime_ns)
            name = path.relative_to(folder).as_posix()
            if (k := bisect_right(begins, name) - 1) < 0:
                return None
            info = _members(archives[k], archives[k].stat().st_mtime_ns).get(name)
            return _read(archives[k], info) if info else None
    return None


def path_to_delete(path: Path) -> str:
    """What to delete so that a corrupt file is written again, in words: it, or the folder whose archives hold it.

    With its object in DVC's cache, if that is damaged too.
    """
    packed = (folder for folder in path.parents if (folder / "files-0000.zip").exists())
    folder = None if path.exists() else next(packed, None)
    return " and ".join(["it" if folder is None else str(folder), *map(str, find_damaged_objects(folder or path))])


def damaged_artifact(path: Path, reason: str) -> SesamError:
    """The error of a file that a stage wrote and that holds something else."""
    return SesamError(f"{path} is damaged: {reason}. Delete {path_to_delete(path)} and run `dvc repro`.")


@lru_cache(16)
def _archives(folder: Path, written: int) -> tuple[list[str], list[Path]]:
    """The names of the archives' first files, sorted, and the archives in that order."""
    first_names = {path: _first_name(path) for path in folder.glob("files-*.zip")}
    archives = sorted(first_names, key=first_names.__getitem__)
    return [first_names[path] for path in archives], archives


def _first_name(path: Path) -> str:
    """The name of an archive's first file, from its first header alone; "" if it is empty."""
    try:
        with open_regular(path) as file:
            header = file.read(_HEADER.size)
            if header.startswith(b"PK\3\4") and len(header) == _HEADER.size:
                _, _, name_length, _ = _HEADER.unpack(header)
                return file.read(name_length).decode()
    except (OSError, ValueError) as problem:
        raise _damaged(path, problem) from None
    if not header.startswith(b"PK\5\6"):
        raise _damaged(path, "not an archive")
    return ""


@lru_cache(64)  # archives, so that memory does not grow with their number
def _members(path: Path, written: int) -> dict[str, ZipInfo]:
    try:
        with open_regular(path) as file, ZipFile(file) as archive:
            check_stored(archive)
            return {info.filename: info for info in archive.infolist()}
    except (BadZipFile, OSError, NotImplementedError, ValueError) as problem:
        raise _damaged(path, problem) from None


def check_stored(archive: ZipFile) -> None:
    """BadZipFile if a member is compressed or more than the archive holds: its size may then be any number."""
    assert archive.fp is not None  # it is open
    length, total = archive.fp.seek(0, os.SEEK_END), 0
    for info in archive.infolist():
        total += info.file_size
        if info.compress_type != ZIP_STORED:
            raise BadZipFile(f"{info.filename} is compressed")
        if not 0 <= info.header_offset <= info.header_offset + info.file_size <= length or total > length:
            raise BadZipFile(f"{info.filename} exceeds the archive")


def check_weights(path: Path) -> None:
    """BadZipFile or ValueError if torch.load would take more memory for a file than it has."""
    with open_regular(path) as file:
        if is_zipfile(file):
            with ZipFile(file) as archive:
                check_stored(archive)
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            if content.find(b"\nbytearray\n") >= 0:  # torch unpickles it, and it is not in any tensor
                raise ValueError("it makes a bytearray")


def _read(path: Path, member: ZipInfo) -> bytes:
    """The content of an archive's member. An open ZipFile would share its file position with forked workers."""
    try:
        with open_regular(path) as file:
            file.seek(member.header_offset)
            crc, size, *lengths = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
            file.seek(sum(lengths), 1)
            content = file.read(member.file_size)
    except OSError as problem:
        raise _damaged(path, problem) from None
    if not zlib.crc32(content) == member.CRC == crc or member.file_size != size:  # it stands in the index, too
        raise _damaged(path, "checksum mismatch")
    return content


def _damaged(path: Path, reason: Exception | str) -> Exception:
    """A SesamError, or a limit of the machine itself, which hides what the file holds."""
    if isinstance(reason, Exception) and limit_reached(reason) is not None:
        return reason
    return SesamError(f"{path} is damaged ({reason}). Delete {path_to_delete(path)} and run `dvc repro`.")
