"""The limits of a machine end a stage with a message that names the limit; no traceback, nothing half-written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run

from sesam.artifacts.archives import pack, read_packed
from sesam.artifacts.atomic_io import atomic_directory, find_corruption, write_text
from sesam.artifacts.manifest import ImageRecord, validate_record
from sesam.datasets.importer import find_images
from sesam.errors import SesamError, run_main
from sesam.params import DatasetParams

LIMITED = """
import resource
from pathlib import Path
import numpy as np
from sesam.artifacts.atomic_io import atomic_directory
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.params import Runtime

def work(k):
    return np.ones((1 << 28)) if {kind!r} == "RLIMIT_AS" else None

def main():
    limit = getattr(resource, {kind!r})
    resource.setrlimit(limit, ({value}, resource.getrlimit(limit)[1]))
    with atomic_directory(Path("out")) as folder:
        map_images(work, range(8), Runtime(num_workers={workers}), "work")
        (folder / "large").write_bytes(b"x" * 100_000)

if __name__ == "__main__":
    run_main(main)
"""


@pytest.mark.parametrize(
    ("kind", "value", "workers", "named"),
    [
        ("RLIMIT_NOFILE", 20, 8, "ulimit -n"),
        ("RLIMIT_AS", 1 << 30, 1, "ulimit -v"),
        ("RLIMIT_FSIZE", 50_000, 1, "ulimit -f"),
    ],
)
def test_a_limit_of_the_process_is_named(tmp_path: Path, kind: str, value: int, workers: int, named: str) -> None:
    (tmp_path / "limited.py").write_text(LIMITED.format(kind=kind, value=value, workers=workers))
    done = run("limited", cwd=tmp_path)
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and message.startswith("error: ") and named in message, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*out*"))


def raising(problem: Exception) -> Callable[[], None]:
    def main() -> None:
        raise problem

    return main


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (MemoryError(), "ulimit -v"),
        (OSError(errno.EIO, "Input/output error", "data/weak/a.png"), r"data/weak/a\.png.*dmesg"),
        (OSError(errno.ESTALE, "Stale file handle"), "dmesg"),
        (OSError(errno.ENOSPC, "No space left on device"), "/dev/shm"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "ulimit -v"),
        (RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"), "ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError("Caught OSError in worker 0.\nTraceback\nOSError: [Errno 5] Input/output error: 'a.png'"), "a.png"),
    ],
    ids=repr,
)
def test_errors_of_the_machine_are_messages(problem: Exception, message: str) -> None:
    with pytest.raises(SystemExit, match=rf"(?s)^error: [^\n]*{message}"):
        run_main(raising(problem))


@pytest.mark.parametrize("problem", [FileNotFoundError(2, "No such file"), RuntimeError("shapes differ")], ids=repr)
def test_other_errors_keep_their_traceback(problem: Exception) -> None:
    with pytest.raises(type(problem)):
        run_main(raising(problem))


def test_a_disk_that_fails_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(SesamError, match=r"a\.json cannot be written: Input.*dmesg"):
        patch.setattr(os, "fsync", fail)
        write_text(tmp_path / "a.json", "")
    cannot_be_written = pytest.raises(SesamError, match=r"out cannot be written: Too many open files.*ulimit -n")
    with cannot_be_written, atomic_directory(tmp_path / "out"):
        raise OSError(errno.EMFILE, "Too many open files")
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_limit_hides_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its remedy would be to delete it."""
    (tmp_path / "a").write_text("x")
    (tmp_path / "packed").mkdir()
    pack(tmp_path, tmp_path / "packed")

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr("sesam.artifacts.archives.open_regular", fail)
        read_packed(tmp_path / "packed/a")
    monkeypatch.setattr("sesam.artifacts.atomic_io.ZipFile", fail)
    with pytest.raises(OSError, match="Too many open files"):
        find_corruption(tmp_path / "a")


def test_ids_leave_room_for_the_suffixes_of_all_files() -> None:
    record = ImageRecord("é" * 125, "a.png", 4, 4, "0" * 64)
    assert validate_record(record) == record  # 250 bytes, and .json is the longest suffix
    with pytest.raises(ValueError, match="at most 250 bytes"):
        validate_record(ImageRecord("a/" + "é" * 125 + "x", "a.png", 4, 4, "0" * 64))


@pytest.mark.parametrize("suffix", [".png", ".json"])
def test_ids_that_need_one_name_for_a_file_and_a_folder(tmp_path: Path, suffix: str) -> None:
    for name in ("a", f"a{suffix}/b", "a.x/b"):
        path = tmp_path / "images/train" / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    dataset = DatasetParams(root=str(tmp_path), classes=["x", "y"], val_splits=[])
    with pytest.raises(SesamError, match=rf"names of several images: 1(?s:.*)the folder a{suffix} has the name of"):
        find_images(dataset)
    (tmp_path / "images/train/a.bmp").unlink()
    assert [pair.id for pair in find_images(dataset)[0]["train"]] == [f"a{suffix}/b", "a.x/b"]
