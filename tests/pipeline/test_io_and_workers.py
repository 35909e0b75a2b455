"""Atomic files and folders, and worker processes that fail."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, edit_params, run, write_params

from sesam.artifacts import atomic_io
from sesam.artifacts.atomic_io import TMP_PREFIX, atomic_directory, atomic_path, read_bytes, write_text
from sesam.errors import DiskError, SesamError
from sesam.execution.parallel import map_images
from sesam.params import Runtime
from sesam.sam.cache import EmbeddingCache

SECONDS = 300  # until a process is taken to hang, on a machine however busy
RUNTIME = Runtime(num_workers=2)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def background(program: str, folder: Path) -> Iterator[subprocess.Popen]:
    """A Python program that runs in `folder` until the block ends."""
    (folder / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        (folder / "program.py").unlink()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


def test_a_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "deep/artifact.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as tmp:
        assert tmp.suffix == ".txt"  # np.save and Pillow choose the format by it
        tmp.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(path.parent) == ["artifact.txt"]
    write_text(path, "new")
    assert path.read_text() == "new" and names(path.parent) == ["artifact.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o002, 0o664)])
def test_file_mode_follows_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # reading the umask changes it for every thread of the process
            write_text(tmp_path / "artifact", "shared")
    finally:
        os.umask(before)
    assert (tmp_path / "artifact").stat().st_mode & 0o777 == mode


def interrupt(path: Path, fingerprint: dict[str, str] | None) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, fingerprint) as folder:
        write_text(folder / "first", "1")
        raise KeyboardInterrupt


def test_an_interrupted_folder_without_fingerprint_is_removed(tmp_path: Path) -> None:
    interrupt(tmp_path / "artifact", None)
    assert names(tmp_path) == []
    with atomic_directory(tmp_path / "artifact") as folder:
        (folder / "second").touch()
    assert names(tmp_path / "artifact") == ["second"]


def test_an_interrupted_folder_resumes_only_with_the_same_fingerprint(tmp_path: Path, capsys) -> None:
    path = tmp_path / "artifact"
    interrupt(path, {"labels": "1", "seed": "2"})
    assert not path.exists()
    (tmp_path / f".artifact.partial/{TMP_PREFIX}x.png").touch()  # of a killed process
    with atomic_directory(path, {"labels": "1", "seed": "2"}) as folder:
        assert (folder / "first").exists()
    assert names(path) == ["first"]
    interrupt(path, {"labels": "1", "seed": "2"})
    with atomic_directory(path, {"labels": "1", "seed": "3"}) as folder:
        (folder / "second").touch()
    assert names(path) == ["second"] and names(tmp_path) == ["artifact"]
    assert capsys.readouterr().out.endswith("restarting from scratch: seed changed since the interruption\n")


def test_what_an_interrupted_run_left_is_verified(tmp_path: Path, capsys) -> None:
    """Else a file that was cut, or one too many, would be packed with a new checksum, as a result."""
    path, partial_folder = tmp_path / "artifact", tmp_path / ".artifact.partial"
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, {"seed": "2"}, packed=True) as folder:
        for name in ("whole", "cut", "changed", "deep/emptied"):
            write_text(folder / name, name)
        raise KeyboardInterrupt
    (partial_folder / "cut").write_text("cu")
    (partial_folder / "changed").write_text("chanced")
    (partial_folder / "deep/emptied").write_text("")
    (partial_folder / "one too many").write_text("x")
    (partial_folder / "a link").symlink_to("whole")
    for _ in range(2):  # what is verified once stays so
        with pytest.raises(KeyboardInterrupt), atomic_directory(path, {"seed": "2"}, packed=True) as folder:
            assert [file.name for file in folder.rglob("*") if not file.is_dir()] == ["whole"]
            raise KeyboardInterrupt
    assert capsys.readouterr().out.count("5 files are not as the interrupted run wrote them") == 1
    with atomic_directory(path, {"seed": "2"}, packed=True) as folder:
        write_text(folder / "cut", "cut")
    assert read_bytes(path / "whole") == b"whole" and names(tmp_path) == ["artifact"]


def test_a_kill_during_replacement_leaves_the_new_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "artifact"
    with atomic_directory(path) as folder:
        (folder / "old").touch()
        (folder / "older").touch()

    class KilledError(BaseException): ...

    def killed(folder: Path, **_: object) -> None:
        for file in list(folder.glob("old"))[:1]:
            file.unlink()
            raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError), atomic_directory(path, {"seed": "2"}) as folder:
        (folder / "new").touch()
        patch.setattr(shutil, "rmtree", killed)
    assert names(path) == ["new"]
    with atomic_directory(path, {"seed": "2"}) as folder:
        (folder / "new").touch()
    assert names(path) == ["new"] and names(tmp_path) == ["artifact"]


WRITE = """
import time
from pathlib import Path
from sesam.artifacts.atomic_io import atomic_path
with atomic_path(Path("artifact.json")) as tmp:
    print(tmp.name, flush=True)
    time.sleep(3600)
"""


def test_stale_tmp_files_are_removed(tmp_path: Path) -> None:
    killed, running = tmp_path / "killed", tmp_path / "running"
    for folder in (killed, running):
        folder.mkdir()
    with background(WRITE, running) as other:
        with background(WRITE, killed) as process:
            stale = process.stdout.readline().decode().strip()
            process.kill()
            process.wait()
        (killed / stale).rename(running / stale)
        active = other.stdout.readline().decode().strip()
        write_text(running / "another.json", "")
        assert {active, "another.json"} <= set(names(running)) and stale not in names(running)


def test_what_another_process_begins_as_one_ends_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = atomic_io._publish

    def publish_and_let_another_begin(tmp: Path, *arguments: object) -> None:
        publish(tmp, *arguments)
        tmp.mkdir()
        (tmp / "1").touch()

    monkeypatch.setattr(atomic_io, "_publish", publish_and_let_another_begin)
    with atomic_directory(tmp_path / "artifact"):
        pass
    assert names(tmp_path / ".artifact.partial") == ["1"]


def test_tmp_files_of_replaced_workers_are_not_in_the_artifact(tmp_path: Path) -> None:
    for packed in (False, True):
        with atomic_directory(tmp_path / "artifact", packed=packed) as folder:
            write_text(folder / "1.json", "one")
            (folder / f"{TMP_PREFIX}dead.json").write_text("half")
        assert len(names(tmp_path / "artifact")) == 1
        with pytest.raises(SesamError, match="is missing"):
            read_bytes(tmp_path / f"artifact/{TMP_PREFIX}dead.json")


FILL = """
import time
from pathlib import Path
from sesam.artifacts.atomic_io import atomic_directory, write_text
with atomic_directory(Path("artifact"), {"a": "1"}) as folder:
    write_text(folder / "one", "1")
    print("filling", flush=True)
    time.sleep(3600)
"""


def test_two_processes_do_not_write_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with background(FILL, tmp_path) as other:
        assert other.stdout.readline() == b"filling\n"
        for fingerprint in ({"a": "1"}, None):
            with (
                pytest.raises(SesamError, match="is being written by another process"),
                atomic_directory(Path("artifact"), fingerprint),
            ):
                pass
        assert (tmp_path / ".artifact.partial/one").read_text() == "1"
    with atomic_directory(Path("artifact"), {"a": "1"}) as folder:  # the lock ended with the process, its work stays
        assert names(folder) == ["one"]
    assert names(Path("artifact")) == ["one"]


def test_file_systems_without_locks_are_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail_with(errno.EBADF))  # NFS's answer for a folder
    with atomic_directory(tmp_path / "artifact") as folder:
        (folder / "one").touch()
    assert names(tmp_path / "artifact") == ["one"]


def test_a_full_disk_is_reported_and_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "artifact.json", "old")
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(SesamError, match=r"artifact\.json cannot be written: No space left on device; .* GB free"):
        write_text(tmp_path / "artifact.json", "new")
    assert names(tmp_path) == ["artifact.json"]
    assert (tmp_path / "artifact.json").read_text() == "old"


def test_a_read_only_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", fail_with(errno.EROFS))
    with (
        pytest.raises(SesamError, match="folder cannot be written: Read-only file system"),
        atomic_directory(tmp_path / "new/folder"),
    ):
        pass
    with pytest.raises(SesamError, match=r"file\.json cannot be written: Read-only file system"):
        write_text(tmp_path / "new/file.json", "")
    with pytest.raises(SesamError, match="cannot be written: Read-only file system"):
        EmbeddingCache("0" * 64, tmp_path / "embeddings").reserve([], 1, 1)


def test_other_errors_of_the_block_are_not_translated(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "artifact"):
        (tmp_path / "missing").read_text()
    assert not list(tmp_path.iterdir())


def die(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def fail_at_even(item: int, folder: Path) -> None:
    if item % 2 == 0:
        raise SesamError(f"item {item} is wrong")
    (folder / str(item)).touch()


def test_results_are_in_order_and_a_killed_worker_is_reported() -> None:
    assert map_images(abs, range(-9, 0), RUNTIME, "order") == list(range(9, 0, -1))
    with pytest.raises(SesamError, match="killed"):
        map_images(die, range(8), RUNTIME, "kill")


HALF_A_RESULT = """
import os, signal
from multiprocessing.connection import Connection

def work(k):
    def send_half(self, content, *_):
        os.write(self.fileno(), bytes(content)[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    if k == 3:
        Connection._send = send_half
    return b"x" * 1000
"""
NO_SERVER = """
import os, signal
from multiprocessing import forkserver
from threading import Timer

work, connect = abs, forkserver.connect_to_new_process

def killed_while_connecting(files):
    forkserver.ensure_running()
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)
    Timer(0.5, os.kill, (server, signal.SIGKILL)).start()
    return connect(files)

forkserver.connect_to_new_process = killed_while_connecting
"""
MAP = """
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.params import Runtime

def main():
    map_images(work, range(20), Runtime(num_workers=2), "work")

if __name__ == "__main__":
    run_main(main)
"""


@pytest.mark.parametrize("program", [HALF_A_RESULT, NO_SERVER], ids=["while it sends a result", "the fork server"])
def test_a_kill_at_any_moment_ends_in_a_message(tmp_path: Path, program: str) -> None:
    (tmp_path / "program.py").write_text(program + MAP)
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1 and "error: work: a worker process was killed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_failed_items_are_reported_together_and_the_others_are_done(tmp_path: Path, workers: int) -> None:
    runtime = RUNTIME.model_copy(update={"num_workers": workers})
    with pytest.raises(SesamError) as raised:
        map_images(partial(fail_at_even, folder=tmp_path), range(60), runtime, "fail")
    lines = str(raised.value).splitlines()
    assert lines[0] == "30 images failed:" and lines[1:3] == ["  item 0 is wrong", "  item 2 is wrong"]
    assert len(lines) == 22 and lines[-1] == "  and 10 more"
    assert sorted(int(name) for name in names(tmp_path)) == list(range(1, 60, 2))
    with pytest.raises(SesamError, match=r"^item 4 is wrong$"):
        map_images(partial(fail_at_even, folder=tmp_path), range(3, 6), runtime, "fail")


def test_a_full_disk_stops_the_work_at_once() -> None:
    started: list[int] = []

    def full(item: int) -> None:
        started.append(item)
        raise DiskError("full")

    with pytest.raises(DiskError):
        map_images(full, range(9), RUNTIME.model_copy(update={"num_workers": 1}), "full")
    assert started == [0]


UNSENT = """
import torch
from sesam.errors import SesamError
from sesam.execution.batches import BatchSteps, iter_results

class Unsent:
    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)")

def read(item):
    return Unsent() if item == 3 else item

def compute(items):
    return [(item,) for item in items]

steps = BatchSteps(read, compute, print, torch.device("cuda"))
try:
    list(iter_results([[k] for k in range(8)], steps, 2))
except SesamError as problem:
    print(problem)
"""


@pytest.mark.long
def test_a_reader_that_cannot_send_is_not_waited_for() -> None:
    command = [sys.executable, "-c", UNSENT]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=True)
    assert "or because /dev/shm is full" in done.stdout.splitlines()[-1]
    assert "cannot send what it read: unable to allocate shared memory" in done.stderr


STAGE = """
from sesam.errors import run_main
def main():
    print(main.__module__)
if __name__ == "__main__":
    run_main(main)
"""


def test_workers_find_a_stage_by_its_module_name(tmp_path: Path) -> None:
    (tmp_path / "some_stage.py").write_text(STAGE)
    assert run("some_stage", cwd=tmp_path).stdout == "some_stage\n"


def test_workers_print_no_warnings(tmp_path: Path) -> None:
    write_params(tmp_path)
    edit_params(tmp_path, demo__demo={"train": 2, "val": 1, "seed": 1})
    command = [sys.executable, "-m", "stages.demo_data", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr


WORKERS = """
import os, time
from pathlib import Path
from sesam.execution.parallel import map_images
from sesam.params import Runtime

def work(k):
    Path(f"worker-{os.getpid()}").touch()
    time.sleep(3600)

if __name__ == "__main__":
    map_images(work, range(4), Runtime(num_workers=2), "work")
"""


def test_workers_exit_with_a_killed_parent(tmp_path: Path) -> None:
    with background(WORKERS, tmp_path):
        wait_for(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
    pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"  # perhaps nobody reaps it
    except (FileNotFoundError, ProcessLookupError):
        return False
