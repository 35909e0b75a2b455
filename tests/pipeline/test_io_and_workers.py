"""Files and folders that appear whole, and worker processes that fail."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from sesam.artifacts.atomic_io import atomic_directory, atomic_path, read_bytes, write_text
from sesam.errors import DiskError, SesamError
from sesam.execution.parallel import map_images, translate_dataloader_errors
from sesam.presets import load_preset
from sesam.sam.cache import EmbeddingCache

TWO = load_preset(ROOT / "presets/demo.yaml").runtime.model_copy(update={"num_workers": 2})


def test_a_file_is_whole_or_as_it_was(tmp_path) -> None:
    path = tmp_path / "deep/artifact.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as beside:
        assert beside.suffix == ".txt"  # by which np.save and Pillow go
        beside.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names(path.parent) == ["artifact.txt"]
    write_text(path, "new")
    assert path.read_text() == "new" and names(path.parent) == ["artifact.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o002, 0o664)])
def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path, monkeypatch, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # to ask for it is to change it, for every thread of the process
            write_text(tmp_path / "artifact", "shared")
    finally:
        os.umask(before)
    assert (tmp_path / "artifact").stat().st_mode & 0o777 == mode


def leave_half(path: Path, made_of: dict[str, str] | None) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_directory(path, made_of) as folder:
        (folder / "first").touch()
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_whole_or_not_there(tmp_path) -> None:
    path = tmp_path / "artifact"
    leave_half(path, None)
    assert names(tmp_path) == []
    with atomic_directory(path) as folder:
        (folder / "second").touch()
    assert names(path) == ["second"]


def test_an_interrupted_folder_goes_on_only_for_the_same_work(tmp_path, capsys) -> None:
    path = tmp_path / "artifact"
    leave_half(path, {"labels": "1", "seed": "2"})
    assert not path.exists()
    (tmp_path / ".artifact.partial/.unfinished-x.png").touch()  # as a killed process leaves it
    with atomic_directory(path, {"labels": "1", "seed": "2"}) as folder:
        assert (folder / "first").exists()
    assert names(path) == ["first"]
    leave_half(path, {"labels": "1", "seed": "2"})
    with atomic_directory(path, {"labels": "1", "seed": "3"}) as folder:
        (folder / "second").touch()
    assert names(path) == ["second"] and names(tmp_path) == ["artifact"]
    assert capsys.readouterr().out.endswith("begins anew: since it was interrupted, seed changed\n")


def test_an_artifact_is_never_half_removed(tmp_path, monkeypatch) -> None:
    """Killed while the one before is removed: the new one stands in its place, and the next run sweeps the rest."""
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
import os, sys, time
from pathlib import Path
from sesam.artifacts.atomic_io import whole
with whole(Path("artifact.json")) as beside:
    print(beside.name, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_was_writing_is_swept_and_what_another_writes_is_not(tmp_path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITE]
    writing = [subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    killed, other = (one.stdout.readline().decode().strip() for one in writing)
    try:
        writing[0].kill()
        writing[0].wait()
        assert {killed, other} <= set(names(tmp_path))
        write_text(tmp_path / "another.json", "")
        assert names(tmp_path) == [other, "another.json"]
    finally:
        writing[1].kill()
        writing[1].wait()


def die(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def complain(item: int, folder: Path) -> None:
    if item % 2 == 0:
        raise SesamError(f"item {item} is bad")
    (folder / str(item)).touch()


def test_results_come_in_order_and_a_killed_worker_is_told() -> None:
    assert map_images(abs, range(-9, 0), TWO, "order") == list(range(9, 0, -1))
    with pytest.raises(SesamError, match="killed"):
        map_images(die, range(8), TWO, "kill")


UNSENT = """
import torch
from torch.utils.data import DataLoader
from sesam.errors import SesamError
from sesam.params import load_params
from sesam.execution.pipeline import Steps, stream

class Unsent:
    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)")

def read(item):
    return Unsent() if item == 3 else item

def compute(items):
    return [(item,) for item in items]

steps = Steps(read, compute, print, torch.device("cuda"))
try:
    list(stream([[k] for k in range(8)], steps, 2))
except SesamError as problem:
    print(problem)
"""


def test_what_a_reader_cannot_send_is_not_waited_for() -> None:
    command, environment = [sys.executable, "-c", UNSENT], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "or because /dev/shm is full" in done.stdout.splitlines()[-1]
    assert "cannot pass on what it read: unable to allocate shared memory" in done.stderr


def test_a_killed_reader_is_told() -> None:
    with pytest.raises(SesamError, match="want of memory"), translate_dataloader_errors(2):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")  # PyTorch's words


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_items_are_told_together_and_the_others_are_done(tmp_path: Path, workers: int) -> None:
    runtime = TWO.model_copy(update={"num_workers": workers})
    with pytest.raises(SesamError) as told:
        map_images(partial(complain, folder=tmp_path), range(60), runtime, "complain")
    lines = str(told.value).splitlines()
    assert lines[0] == "30 images failed:" and lines[1:3] == ["  item 0 is bad", "  item 2 is bad"]
    assert len(lines) == 22 and lines[-1] == "  and 10 more"
    assert sorted(int(name) for name in names(tmp_path)) == list(range(1, 60, 2))
    with pytest.raises(SesamError, match=r"^item 4 is bad$"):
        map_images(partial(complain, folder=tmp_path), range(3, 6), runtime, "complain")


def test_a_full_disk_ends_the_work_at_once() -> None:
    begun: list[int] = []

    def full(item: int) -> None:
        begun.append(item)
        raise DiskError("full")

    with pytest.raises(DiskError):
        map_images(full, range(9), TWO.model_copy(update={"num_workers": 1}), "full")
    assert begun == [0]


STAGE = """
from sesam.errors import run_stage
def main():
    print(main.__module__)
if __name__ == "__main__":
    run_stage(main)
"""


def test_a_stage_is_known_by_its_name_to_other_processes(tmp_path: Path) -> None:
    """Ray's workers have a __main__ of their own."""
    (tmp_path / "some_stage.py").write_text(STAGE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "some_stage"]
    assert subprocess.check_output(command, cwd=tmp_path, env=environment) == b"some_stage\n"


def test_unfinished_files_of_replaced_workers_are_in_no_artifact(tmp_path: Path) -> None:
    for packed in (False, True):
        with atomic_directory(tmp_path / "artifact", packed=packed) as folder:
            write_text(folder / "1.json", "one")
            (folder / ".unfinished-dead.json").write_text("half")
        assert len(names(tmp_path / "artifact")) == 1
        with pytest.raises(SesamError, match="is missing"):
            read_bytes(tmp_path / "artifact/.unfinished-dead.json")


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "artifact.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SesamError, match=r"artifact\.json cannot be written: No space left on device; .* GB free"):
        write_text(tmp_path / "artifact.json", "new")
    assert [file.name for file in tmp_path.iterdir()] == ["artifact.json"]
    assert (tmp_path / "artifact.json").read_text() == "old"


def test_a_disk_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with (
        pytest.raises(SesamError, match="folder cannot be written: Read-only file system"),
        atomic_directory(tmp_path / "new/folder"),
    ):
        pass
    with pytest.raises(SesamError, match=r"file\.json cannot be written: Read-only file system"):
        write_text(tmp_path / "new/file.json", "")
    with pytest.raises(SesamError, match="cannot be written: Read-only file system"):
        EmbeddingCache("0" * 64, tmp_path / "embeddings").reserve([], 1, 1)


def test_what_a_block_itself_raises_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "artifact"):
        (tmp_path / "missing").read_text()
    assert not list(tmp_path.iterdir())


FILL = """
import sys, time
from pathlib import Path
from sesam.artifacts.atomic_io import for_one_process, whole_folder
with whole_folder(Path("artifact"), {"a": "1"}) as folder:
    (folder / "one").write_text("1")
    print("filling", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_fill_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen([sys.executable, "-c", FILL], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"filling\n"
        for made_of in ({"a": "1"}, None):
            with (
                pytest.raises(SesamError, match="is being filled by another process"),
                atomic_directory(Path("artifact"), made_of),
            ):
                pass
        assert (tmp_path / ".artifact.partial/one").read_text() == "1"
    finally:
        other.kill()
        other.wait()
    with atomic_directory(Path("artifact"), {"a": "1"}) as folder:  # the lock ended with it, what it had done stays
        assert names(folder) == ["one"]
    assert names(Path("artifact")) == ["one"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as NFS says of a folder

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with atomic_directory(tmp_path / "artifact") as folder:
        (folder / "one").touch()
    assert names(tmp_path / "artifact") == ["one"]


WORKERS = """
import os, time
from pathlib import Path
from sesam.execution.parallel import per_image
from sesam.params import Runtime

some = {"batch": 1, "compile": False, "cache": None, "cache_gb": 0, "processes": 1, "launcher": "torchrun"}
RUNTIME = Runtime(device="cpu", engine="local", workers=2, **some)

def work(k):
    Path(f"worker-{os.getpid()}").touch()
    time.sleep(60)

if __name__ == "__main__":
    per_image(work, range(4), RUNTIME, "work")
"""


def test_worker_processes_say_nothing(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["draw"]["demo"] |= {"train": 2, "val": 1}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "stages.demo_data", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "Warning" not in done.stderr


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(WORKERS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(tmp_path.glob("worker-*"))) == 2, 60)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() and alive(pid) for pid in pids), 20)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # nobody may be there to reap it


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
