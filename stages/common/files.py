"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

from stages.common.errors import SesamError

UNFINISHED = ".unfinished-"  # how the names of files that are being written begin


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; moved onto `path` when the block ends without error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f"{UNFINISHED}{uuid4().hex}{path.suffix}"
    beside.touch(exist_ok=False)  # a new file has the mode that the umask leaves; mkstemp makes private ones
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file; SesamError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SesamError(f"{path} is missing. Run `dvc repro`, or `dvc pull` if a colleague has made it.") from None
    except (OSError, ValueError) as problem:
        raise SesamError(f"{path} cannot be read as JSON ({problem}). Delete it and run `dvc repro`.") from None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Hex digest of JSON-serialisable parts: equal parts, equal fingerprint."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_of(*modules: ModuleType) -> list[str]:
    """SHA-256 of each module's source: a part of the fingerprint of what the modules make."""
    return [sha256(Path(module.__file__)) for module in modules]


@contextmanager
def whole_folder(path: Path, made_of: str | None = None) -> Iterator[Path]:
    """A folder beside `path` to fill; takes the place of `path` when the block ends without error.

    Empty, unless an interrupted call with the same fingerprint `made_of` left its files in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.partial"
    mark = beside / "made_of.json"
    if made_of is None or not mark.exists() or read_json(mark) != made_of:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        if made_of is not None:
            write_json(mark, made_of)
    for left in beside.rglob(f"{UNFINISHED}*"):  # by a killed process
        left.unlink()
    try:
        yield beside
        mark.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        beside.replace(path)
    finally:
        if made_of is None:
            shutil.rmtree(beside, ignore_errors=True)
