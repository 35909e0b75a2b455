"""Checks of what `dvc checkout` would write: DVC joins whatever paths it is given.

A folder is an object `MD5.dir`, which lists its files: JSON, a list of {"md5": MD5, "relpath": "a/b.png"}. DVC neither
compares that object with its MD5 nor looks at the paths, and it trusts each object that is in its cache.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser, Error
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import site_config_dir, user_config_dir
from yaml import YAMLError

from sesam.errors import SesamError
from sesam.regular_files import open_regular
from sesam.yaml_io import read_fast

FOLDERS = ("data", "models", "metrics")  # where outputs are; code is elsewhere
DIR = ".dir"  # ends the MD5 of a folder
MAX_PATH = 1024  # characters: as S3 allows; each folder on the way is kept
MAX_LISTING_BYTES = 1 << 28  # two million files or so; DVC reads all of it into memory too

_MD5 = re.compile("[0-9a-f]{32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile("[A-Za-z]:")
_DVC_FILES = ("dvc.yaml", "dvc.lock", ".dvcignore")


def is_md5(text: object) -> bool:
    return isinstance(text, str) and _MD5.fullmatch(text) is not None


def file_md5(path: Path) -> str:
    """Hex MD5 of a file's bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def check_path(path: str) -> None:
    """ValueError if a relative path leads out of its folder, or is one of git's or DVC's own files."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or _DRIVE.match(path):
        raise ValueError("it leads out of the output, or is not a plain relative path")
    if len(path) > MAX_PATH:
        raise ValueError(f"it is too long: more than {MAX_PATH} characters")
    if _CONTROL.search(path):
        raise ValueError("it has control characters")
    for name in (part.casefold() for part in parts):
        if name == ".git" or name.endswith(".dvc") or name in _DVC_FILES:
            raise ValueError("git or DVC would read it as a file of their own")


def check_output(path: str, tracked: Iterable[str]) -> None:
    """ValueError if DVC must not write an output to this path from the repository's root. tracked: git's files."""
    check_path(path)
    parts = path.split("/")
    if parts[0] not in FOLDERS or len(parts) == 1:
        raise ValueError(f"it is not inside {', '.join(FOLDERS)}, so it could replace code")
    if any(part.startswith(".") for part in parts):
        raise ValueError("it is hidden")  # models/.work has checkpoints that are loaded by unpickling
    for file in tracked:
        if f"{file}/".startswith(f"{path}/") or path.startswith(f"{file}/"):
            raise ValueError(f"git tracks {file}, which would be replaced or removed")


def read_listing(content: bytes) -> dict[str, str]:
    """The MD5 of each relative path in a `.dir` object; ValueError if DVC does not write such a list, or must not."""
    try:
        entries = json.loads(content.decode("ascii"))  # as DVC writes it: no two readings of one file
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"it is not a list of files ({problem})") from None
    if not isinstance(entries, list):
        raise ValueError("it is not a list of files")
    files: dict[str, str] = {}
    for entry in entries:
        path = _listed_path(entry)
        if path in files:
            raise ValueError(f"it lists {path!r} twice")
        files[path] = entry["md5"]
    if both := files.keys() & parents_of(files):
        raise ValueError(f"it lists {min(both)!r} as a file and as a folder")
    return files


def _listed_path(entry: Any) -> str:
    """The path of one entry of a listing."""
    if not isinstance(entry, dict) or entry.keys() != {"md5", "relpath"} or not isinstance(entry["relpath"], str):
        raise ValueError(f"an entry is not an MD5 and a path: {entry!r:.100}")
    if not is_md5(entry["md5"]):
        raise ValueError(f"{entry['relpath']!r:.200} has the MD5 {entry['md5']!r:.100}")
    try:
        check_path(entry["relpath"])
    except ValueError as problem:
        raise ValueError(f"it lists {entry['relpath']!r:.200}: {problem}") from None
    return entry["relpath"]


def parents_of(paths: Iterable[str]) -> set[str]:
    """All folders on the way to these paths."""
    parents: set[str] = set()
    for path in paths:
        while (path := path.rpartition("/")[0]) and path not in parents:
            parents.add(path)
    return parents


def find_links(paths: Iterable[str]) -> list[str]:
    """Symbolic links to folders on the way to these paths or at them: what is written there lands elsewhere."""
    paths = set(paths)
    links = {path for path in parents_of(paths) if Path(path).is_symlink()}
    return sorted(links | {path for path in paths if Path(path).is_symlink() and Path(path).is_dir()})


def find_damaged_objects(path: Path) -> list[Path]:
    """The objects of a file, or of a folder and its files, in DVC's cache that do not have the MD5 that dvc.lock says.

    DVC takes each object in its cache as whole, so that it would restore the damage. Empty without a readable dvc.lock.
    """
    objects = {cached_object(md5): md5.removesuffix(DIR) for md5 in recorded_md5s([path]).values()}
    return [found for found, md5 in objects.items() if found.is_file() and file_md5(found) != md5]


def find_damaged_files(paths: Iterable[Path]) -> list[Path]:
    """The files at these paths that are as a damaged object of DVC's cache is, and the folders with a damaged list.

    A file that was written since dvc.lock was is none of them. Each file is read once.
    """
    recorded = recorded_md5s(paths)
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter
        damaged = pool.map(_is_damaged, recorded.keys(), recorded.values())
        return [path for path, found in zip(recorded, damaged, strict=True) if found]


def _is_damaged(path: Path, md5: str) -> bool:
    """Whether the file, or the list of the folder, is a damaged object's."""
    try:
        found = file_md5(cached_object(md5) if md5.endswith(DIR) else path)
        return found != md5.removesuffix(DIR) and path.exists() and found == file_md5(cached_object(md5))
    except (OSError, ValueError, SesamError):
        return False  # who reads a missing or irregular file says so


def recorded_md5s(paths: Iterable[Path]) -> dict[Path, str]:
    """The MD5 of each file at or below these paths, and of each folder with one, as dvc.lock and the cache have them.

    Of a folder whose list of files is damaged, only its own; empty without a readable dvc.lock.
    """
    try:
        stages = read_fast(Path("dvc.lock"))["stages"].values()
        outputs = {Path(out["path"]): out["md5"] for stage in stages for out in stage.get("outs", ())}
        md5s = {out: md5 for out, md5 in outputs.items() if is_md5(md5.removesuffix(DIR)) and overlap([out], paths)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SesamError, YAMLError):
        return {}
    for folder, md5 in list(md5s.items()):
        with suppress(OSError, ValueError, SesamError):
            if md5.endswith(DIR) and file_md5(listing := cached_object(md5)) == md5.removesuffix(DIR):
                files = read_listing(listing.read_bytes())
                md5s |= {folder / name: files[name] for name in files if overlap([folder / name], paths)}
    return md5s


def overlap(some: Iterable[Path], others: Iterable[Path]) -> bool:
    """Whether one of some paths is one of the others, or inside it, or around it."""
    return any(path.is_relative_to(other) or other.is_relative_to(path) for path in some for other in others)


def cached_object(md5: str) -> Path:
    """Where DVC's cache has the object of an MD5: as the machine, the user or this repository configured it."""
    folder = Path(".dvc/cache")
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or site_config_dir("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or user_config_dir("dvc", "iterative")
    for file in (*(Path(place, "config") for place in (system, user)), Path(".dvc/config"), Path(".dvc/config.local")):
        config = ConfigParser(strict=False, interpolation=None)
        with suppress(Error, UnicodeDecodeError):
            config.read(file, encoding="utf-8")
        if place := config.get("cache", "dir", fallback="").strip("'\""):
            folder = file.parent / Path(place).expanduser()  # relative to its file
    return Path(os.path.relpath(folder)) / "files/md5" / md5[:2] / md5[2:]
