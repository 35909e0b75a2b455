"""Injected faults: whatever happens to a stage, nothing is half-written, and the next run makes what it should.

    make fault-injection                            # every stage, thousands of cases, an hour of one core and more
    python -m tests.robustness.fault_injection --cases 30      # drawn from those; --stages prompts merge_labels: of these alone

A tiny project is run once without faults, which gives the bytes to expect and the places at which a stage changes the
file system. Then each case disturbs one stage at one such place, looks at what it left, and runs it again. A stage runs
in a fork of this process, in which the libraries are loaded already: a case takes less than a second.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import Value
from pathlib import Path
from typing import Any

import torch
import yaml
from dvc.repo import Repo

import sesam.sam.inference
import sesam.segmentation.hooks
from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.manifest import ImageRecord

ROOT = Path(__file__).parents[2]
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
DISKS = {"full disk": errno.ENOSPC, "read-only disk": errno.EROFS}
INPUTS = ("cut", "emptied", "vanished", "noise", "swapped")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
UNFINISHED = (".unfinished-", ".partial", ".old", ".work")  # in the names of what is being written
GROWING = ("metrics/training",)  # logs, written line by line and anew by every run
CACHES = {"embed": "data/embeddings"}  # no output of DVC's; removed, so that the stage has something to do


@dataclass
class Stage:
    """A stage as dvc.yaml has it.

    events: how often an undisturbed run changes the file system. read: the inputs that it opens. expected: SHA-256 of
    each file that it makes, the largest of `largest` bytes.
    """

    name: str
    module: str
    arguments: list[str]
    inputs: list[str]
    outputs: list[str]
    expected: dict[str, str] = field(default_factory=dict)
    events: int = 0
    read: list[str] = field(default_factory=list)
    largest: int = 0


@dataclass
class Ended:
    """code: as of a subprocess, minus the signal that ended it."""

    code: int
    said: str


class Broken(Exception):
    """A fault that was not survived."""


# --- the project -------------------------------------------------------------------------------------------------


def make_project(folder: Path) -> list[Stage]:
    """A project of a few drawn scenes, one taught round and short trainings; its stages in an order to run them in."""
    for name in ("dvc.yaml", "models/none"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for code in ("sesam", "stages"):
        (folder / code).symlink_to(ROOT / code)
    params = yaml.safe_load((ROOT / "presets/demo.yaml").read_text(encoding="utf-8"))
    params["draw"]["demo"] |= {"train": 3, "val": 2}
    for schedule in ("teacher", "student"):
        params[schedule] |= {"iterations": 20, "batch": 2, "crop": [32, 32]}
    params["network"] |= {"width": 4, "head_width": 8, "auxiliary": 0.0}
    params["augment"]["confidence"] = 0.2
    params["rounds"] = {"r1": {"teacher": "teacher", "fill_confident": True}}
    params["evaluation"]["panels"] = 1
    params["runtime"]["num_workers"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    repo = Repo.init(str(folder), no_scm=True)
    found = []
    for one in _sorted(repo):
        _, _, module, *arguments = one.cmd.split()
        inputs = [
            dep.def_path
            for dep in one.deps
            if dep.def_path and not dep.def_path.startswith(("sesam", "stages", "params"))
        ]
        found.append(Stage(one.addressing, module, arguments, inputs, [out.def_path for out in one.outs]))
    repo.close()
    return found


def _sorted(repo: Repo) -> Iterator[Any]:
    """The stages, each after those that it depends on."""
    from networkx import topological_sort

    return reversed(list(topological_sort(repo.index.graph)))


def files_of(paths: list[str]) -> dict[str, str]:
    """SHA-256 of every file below the paths, by its path; those that are being written left out."""
    found = {}
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []:
            if file.is_file() and not any(part in file.name for part in UNFINISHED):
                found[str(file)] = sha256(file)
    return found


def leftovers(folder: Path) -> list[str]:
    """What was being written and has not been swept."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if any(part in path.name for part in UNFINISHED) and ".dvc" not in path.parts
        if path.is_file() or not any(path.iterdir())
        if path.name != ".work"
    ]


def remove(paths: list[str]) -> None:
    """As DVC does with the outputs of a stage before it runs it."""
    for path in map(Path, paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# --- running a stage in a fork -------------------------------------------------------------------------------------


def start(stage: Stage, disturb: Callable[[], None]) -> tuple[int, int]:
    """Fork, call `disturb` in the child and run the stage in it; its process id and what it says, as a pipe."""
    said, saying = os.pipe()  # to a file it could say nothing on a full disk
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(saying)
        os.set_blocking(said, False)
        return child, said
    code = 1
    try:
        os.dup2(saying, 1)
        os.dup2(saying, 2)
        sys.argv = [stage.module, *stage.arguments]
        sesam.segmentation.hooks.CHECKPOINT_SECONDS = 0
        signal.signal(signal.SIGINT, signal.default_int_handler)
        disturb()
        runpy.run_module(stage.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, said: int, seconds: float = 120) -> Ended:
    """The child's end; Broken if it hangs."""
    deadline, content, done = time.monotonic() + seconds, b"", 0
    with open(said, "rb") as pipe:
        while not done:
            done, status = os.waitpid(child, os.WNOHANG)
            content += pipe.read() or b""
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise Broken(f"hangs, {seconds} s:\n{content.decode(errors='replace')}")
            time.sleep(0.005)
    return Ended(os.waitstatus_to_exitcode(status), content.decode(errors="replace"))


def run(stage: Stage, disturb: Callable[[], None] = lambda: None) -> Ended:
    return wait(*start(stage, disturb))


REACHED = Value("b", False)  # whether the fault came before the stage ended


def at_event(act: Callable[[int], None], read: Callable[[str], None] = lambda path: None) -> None:
    """From now on, call act(n) before the n-th change of the file system below the working folder, from 1."""
    here, main, numbers = str(Path.cwd()), os.getpid(), count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in CHANGES:
            return
        path = arguments[0]
        if os.getpid() != main or not isinstance(path, str | bytes | os.PathLike):
            return
        name = str(Path(here, os.fsdecode(path)))
        inside = name.startswith(here + os.sep)
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if inside and not writes:
                read(os.path.relpath(name, here))
            if not writes and not any(part in name for part in UNFINISHED):
                return
        if inside or event in ("os.remove", "os.rmdir"):  # shutil names what it removes without its folder
            act(next(numbers))

    sys.addaudithook(hook)


# --- the faults ----------------------------------------------------------------------------------------------------


def signalled(which: signal.Signals, place: int) -> Callable[[], None]:
    def act(n: int) -> None:
        if n == place:
            REACHED.value = True
            os.kill(os.getpid(), which)

    return lambda: at_event(act)


def broken_disk(number: int, place: int) -> Callable[[], None]:
    """From the place on, nothing can be written or made; what is there can be read and, on a full disk, removed."""

    def act(n: int) -> None:
        if n >= place:
            REACHED.value = True
            raise OSError(number, os.strerror(number))

    return lambda: at_event(act)


def nothing_twice() -> None:
    """SAM's masks of an image are not written where they stand already."""
    write = sesam.sam.inference.write_masks

    def once(item: ImageRecord, found: object, fresh: object, folder: Path, cache: object) -> None:
        if (folder / f"{item.id}.json").exists():
            raise RuntimeError(f"{item.id} had been finished, and is made again")
        write(item, found, fresh, folder, cache)

    sesam.sam.inference.write_masks = once


def short_of_space(most: int) -> Callable[[], None]:
    """No file can grow beyond `most` bytes: the kernel's own error, inside of whatever library writes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def damage(path: Path, how: str, rng: random.Random) -> None:
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[: rng.randrange(max(1, len(content) - 2))])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "vanished":
        path.unlink()
    elif how == "noise":
        path.write_bytes(rng.randbytes(len(content)))
    else:  # swapped: another file of the same form, if there is one
        others = [one for one in sorted(path.parent.glob(f"*{path.suffix}")) if one != path and one.is_file()]
        if others:
            shutil.copyfile(rng.choice(others), path)


@contextmanager
def put_back(path: Path) -> Iterator[None]:
    """Whatever the block makes of an input."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)


# --- a case --------------------------------------------------------------------------------------------------------


def check_message(ended: Ended, codes: tuple[int, ...]) -> None:
    """A message in the place of a traceback, on a line of its own (a progress bar wipes its line)."""
    if "Traceback" in ended.said:
        raise Broken(f"a traceback:\n{ended.said}")
    if ended.code not in codes:
        raise Broken(f"exit code {ended.code}, not one of {codes}:\n{ended.said}")
    if ended.code == 1 and not re.search("(^|[\r\n])(error: |stopped; )", ended.said):
        raise Broken(f"no message:\n{ended.said}")


def check_left(stage: Stage) -> None:
    """What stands in the outputs' places is whole."""
    for path, digest in files_of(stage.outputs).items():
        if not path.startswith(GROWING) and stage.expected.get(path) != digest:
            raise Broken(f"{path} is half-written")


def check_again(stage: Stage, goes_on: bool) -> None:
    """The next run makes the bytes of an undisturbed one, makes nothing twice if it goes on, and sweeps the rest."""
    remove(stage.outputs)
    ended = run(stage, nothing_twice) if goes_on else run(stage)
    if ended.code:
        raise Broken(f"the next run fails:\n{ended.said}")
    made = files_of(stage.outputs)
    if different := [p for p in {**made, **stage.expected} if made.get(p) != stage.expected.get(p)]:
        raise Broken(f"the next run makes other bytes: {', '.join(sorted(different))}")
    if left := leftovers(Path.cwd()):
        raise Broken(f"left behind after the next run: {', '.join(left)}")


Case = tuple[Stage, str, Any]


def try_case(case: Case, rng: random.Random) -> None:
    """Broken if the stage does not survive the fault."""
    stage, kind, where = case
    remove([*stage.outputs, *([CACHES[stage.name]] if stage.name in CACHES else [])])
    REACHED.value = False
    if kind in SIGNALS:
        ended = run(stage, signalled(SIGNALS[kind], where))
        code = 1 if kind == "interrupt" else -SIGNALS[kind]
        check_message(ended, (code,) if REACHED.value else (0,))
    elif kind in DISKS:
        ended = run(stage, broken_disk(DISKS[kind], where))
        whole = files_of(stage.outputs) == stage.expected  # the disk broke when all was written
        check_message(ended, (0, 1) if whole else (1,))
    elif kind == "no room":
        check_message(run(stage, short_of_space(where)), (1,))
    elif kind == "two at once":
        both = [start(stage, lambda: None)]
        time.sleep(where)
        both.append(start(stage, lambda: None))
        for ended in [wait(*one) for one in both]:
            check_message(ended, (0, 1))
            if ended.code and "another process" not in ended.said:
                raise Broken(f"one of two fails:\n{ended.said}")
    else:
        path, place = where
        with put_back(Path(path)):
            if place is None:
                damage(Path(path), kind, rng)
                ended = run(stage)
            else:
                ended = run(stage, lambda: at_event(lambda n: damage(Path(path), kind, rng) if n == place else None))
            check_message(ended, (0, 1))
            if ended.code == 0 and place is None and kind != "swapped" and not path.startswith(GROWING):
                check_left(stage)  # it was no damage that matters
        if ended.code == 0:
            remove(stage.outputs)
    check_left(stage)
    check_again(stage, goes_on=stage.name == "sam_masks@r1" and (kind in SIGNALS or kind in DISKS))


def all_cases(stages: list[Stage], rng: random.Random) -> Iterator[Case]:
    for stage in stages:
        for kind in (*SIGNALS, *DISKS):
            yield from ((stage, kind, place) for place in range(1, stage.events + 1))
        sizes = {0, 1, stage.largest - 1, *(rng.randrange(stage.largest) for _ in range(5))}
        yield from ((stage, "no room", size) for size in sorted(sizes))
        yield from ((stage, "two at once", rng.random() * 0.5) for _ in range(3))
        for path in stage.read:
            yield from ((stage, kind, (path, None)) for kind in INPUTS)
        for path in rng.sample(stage.read, min(5, len(stage.read))):
            yield (stage, rng.choice(INPUTS), (path, rng.randint(1, stage.events)))


def learn(stage: Stage) -> None:
    """Run the stage undisturbed, and remember what it makes, reads and changes."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as opened:
        events = Value("i", 0)

        def see() -> None:
            def act(n: int) -> None:
                events.value = n

            at_event(act, lambda path: print(path, file=opened, flush=True))

        ended = run(stage, see)
        if ended.code:
            raise Broken(f"{stage.name} fails undisturbed:\n{ended.said}")
        opened.seek(0)
        read = set(opened.read().splitlines())
    stage.events = events.value
    stage.expected = files_of(stage.outputs)
    stage.largest = max(Path(path).stat().st_size for path in stage.expected)
    stage.read = sorted(path for path in read if path.startswith(tuple(stage.inputs)) and Path(path).is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, help="so many, drawn from all")
    parser.add_argument("--stages", nargs="+", help="of these stages alone, as dvc.yaml names them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)  # and a fork may have no threads of its parent
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        stages = make_project(Path(folder))
        for stage in stages:
            learn(stage)
        wanted = [one for one in stages if options.stages is None or one.name.split("@")[0] in options.stages]
        cases = list(all_cases(wanted, rng))
        if options.cases is not None and options.cases < len(cases):
            cases = rng.sample(cases, options.cases)
        started, broken, tried = time.monotonic(), 0, Counter[str]()
        for case in cases:
            tried[case[1]] += 1
            try:
                try_case(case, rng)
            except Broken as problem:
                broken += 1
                print(f"{case[0].name}, {case[1]} {case[2]}: {problem}", flush=True)
                remove([*case[0].outputs, "models/.work"])
                for left in leftovers(Path(folder)):
                    Path(left).unlink(missing_ok=True)
                learn(case[0])
        os.chdir("/")
    minutes = (time.monotonic() - started) / 60
    print(", ".join(f"{number} {kind}" for kind, number in tried.most_common()))
    print(f"{len(cases)} faults injected in {minutes:.1f} min, {len(cases) - broken} survived")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
