"""Fault injection: no fault leaves half-written artifacts, and the next run writes the expected bytes.

    make fault-injection                                       # all cases, more than an hour on one core
    python -m tests.robustness.fault_injection --cases 30      # a random sample

A tiny project runs once without faults: this gives the expected bytes, and the events at which a stage changes the file
system. Then each case injects one fault into one stage, checks what it left, and runs the stage again. A stage runs in
a fork of this process, which has imported the libraries: a case takes less than a second.
"""

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
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing import Value
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from dvc.repo import Repo
from networkx import topological_sort

import sesam.sam.inference
import sesam.segmentation.hooks
from sesam.artifacts.atomic_io import TMP_PREFIX, sha256
from sesam.artifacts.manifest import ImageRecord
from sesam.execution.progress import ProgressBar
from sesam.presets import load_preset, render_params

ROOT = Path(__file__).parents[2]
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
DISKS = {"full disk": errno.ENOSPC, "read-only disk": errno.EROFS}
INPUTS = ("cut", "emptied", "vanished", "noise", "swapped")
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
TMP_NAMES = (TMP_PREFIX, ".partial", ".work")  # in the names of unfinished files and folders
LOGS = ("metrics/training",)  # written line by line, and again by every run
CACHES = {"embed": "data/embeddings"}  # not an output; removed, so that the stage has something to do
HANGS = 1800  # seconds until a stage counts as hanging, on a machine however busy


@dataclass
class Stage:
    """A stage of dvc.yaml. arguments: its module, and what follows it.

    events: number of changes of the file system in an undisturbed run. read: the inputs that it opens. expected:
    SHA-256 per output file. largest: bytes of the largest output file.
    """

    name: str
    arguments: list[str]
    inputs: list[str]
    outputs: list[str]
    expected: dict[str, str] = field(default_factory=dict)
    events: int = 0
    read: list[str] = field(default_factory=list)
    largest: int = 0


class Completed(NamedTuple):
    """A stage's end. code: as of a subprocess, negative for a signal."""

    code: int
    output: str


class NotSurvivedError(Exception):
    """A fault that was not survived."""


def check(survived: object, message: str) -> None:
    if not survived:
        raise NotSurvivedError(message)


def make_project(folder: Path) -> list[Stage]:
    """A project of a few drawn scenes, one round with a teacher and short trainings; its stages in running order."""
    for name in ("dvc.yaml", "models/none"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for code in ("sesam", "stages"):
        (folder / code).symlink_to(ROOT / code)
    params = yaml.safe_load(render_params(load_preset(ROOT / "presets/demo.yaml")))
    params["demo"]["demo"] |= {"train": 3, "val": 2}
    params["schedule"] |= {"max_iters": 20, "batch_size": 2, "crop_size": [32, 32]}
    params["network"] |= {"base_channels": 4, "head_channels": 8, "aux_loss_weight": 0.0}
    params["teacher"]["confidence_threshold"] = 0.2
    params["rounds"] = {"r1": {"teacher": "baseline", "fill_confident": True}}
    params["report"]["num_images"] = params["runtime"]["num_workers"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    with Repo.init(str(folder), no_scm=True) as repo:
        return [_stage(stage) for stage in reversed(list(topological_sort(repo.index.graph)))]


def _stage(stage: Any) -> Stage:
    """DVC's stage as ours."""
    deps = [dep.def_path for dep in stage.deps if dep.def_path]
    inputs = [path for path in deps if not path.startswith(("sesam", "stages", "params"))]
    return Stage(stage.addressing, stage.cmd.split()[2:], inputs, [out.def_path for out in stage.outs])


def is_tmp(name: str) -> bool:
    return any(part in name for part in TMP_NAMES)


def digests(paths: list[str]) -> dict[str, str]:
    """SHA-256 of every finished file below the paths, by its path."""
    files = [file for path in map(Path, paths) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {str(file): sha256(file) for file in files if file.is_file() and not is_tmp(file.name)}


def leftovers(folder: Path) -> list[str]:
    """Temporary files and empty temporary folders."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if is_tmp(path.name) and ".dvc" not in path.parts and path.name != ".work"
        if path.is_file() or not any(path.iterdir())
    ]


def remove(paths: list[str]) -> None:
    """Remove a stage's outputs, as DVC does before it runs the stage."""
    for path in map(Path, paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def start(stage: Stage, disturb: Callable[[], None]) -> tuple[int, int]:
    """Fork, call `disturb` in the child and run the stage in it; its process id, and a pipe of its output."""
    reading, writing = os.pipe()  # a file could not be written on a full disk
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(writing)
        os.set_blocking(reading, False)
        return child, reading
    code = 1
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.argv = stage.arguments
        sesam.segmentation.hooks.CHECKPOINT_SECONDS = 0
        signal.signal(signal.SIGINT, signal.default_int_handler)
        disturb()
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, output: int) -> Completed:
    """The child's end; NotSurvivedError if it hangs."""
    deadline, content, done = time.monotonic() + HANGS, b"", 0
    with open(output, "rb") as pipe:
        while not done:
            done, status = os.waitpid(child, os.WNOHANG)
            content += pipe.read() or b""
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise NotSurvivedError(f"hangs, {HANGS} s:\n{content.decode(errors='replace')}")
            time.sleep(0.005)
    return Completed(os.waitstatus_to_exitcode(status), content.decode(errors="replace"))


def run(stage: Stage, disturb: Callable[[], None] = lambda: None) -> Completed:
    return wait(*start(stage, disturb))


REACHED = Value("b", False)  # whether the fault happened before the stage ended


def at_event(act: Callable[[int], None], read: Callable[[str], None] = lambda path: None) -> None:
    """From now on, call act(n) before the n-th change of the file system below the working folder, n from 1."""
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
            if not writes and not is_tmp(name):
                return
        if inside or event in ("os.remove", "os.rmdir"):  # shutil passes names without their folder
            act(next(numbers))

    sys.addaudithook(hook)


def send_signal(which: signal.Signals, event: int) -> Callable[[], None]:
    def act(n: int) -> None:
        if n == event:
            REACHED.value = True
            os.kill(os.getpid(), which)

    return lambda: at_event(act)


def broken_disk(error: int, event: int) -> Callable[[], None]:
    """From the event on, nothing can be written or removed; files can still be read."""

    def act(n: int) -> None:
        if n >= event:
            REACHED.value = True
            raise OSError(error, os.strerror(error))

    return lambda: at_event(act)


def refuse_repeated_work() -> None:
    """Fail if SAM's masks of an image are written although they exist."""
    write = sesam.sam.inference.write_masks

    def write_once(record: ImageRecord, *results: Any, folder: Path, **options: Any) -> None:
        if (folder / f"{record.id}.json").exists():
            raise RuntimeError(f"{record.id} was finished, and is written again")
        write(record, *results, folder=folder, **options)

    sesam.sam.inference.write_masks = write_once


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
    else:  # swapped: another file of the same type, if there is one
        others = [other for other in sorted(path.parent.glob(f"*{path.suffix}")) if other != path and other.is_file()]
        if others:
            shutil.copyfile(rng.choice(others), path)


def check_message(ended: Completed, codes: tuple[int, ...]) -> None:
    """A message instead of a traceback, on its own line (a progress bar clears its line)."""
    check("Traceback" not in ended.output, f"a traceback:\n{ended.output}")
    check(ended.code in codes, f"exit code {ended.code}, not one of {codes}:\n{ended.output}")
    has_message = re.search("(^|[\r\n])(error: |stopped; )", ended.output)
    check(ended.code != 1 or has_message, f"no message:\n{ended.output}")


def check_outputs(stage: Stage) -> None:
    """Existing outputs have the expected bytes."""
    for path, digest in digests(stage.outputs).items():
        check(path.startswith(LOGS) or stage.expected.get(path) == digest, f"{path} is half-written")


def check_next_run(stage: Stage, resumes: bool) -> None:
    """The next run writes the expected bytes, repeats no work if it resumes, and removes temporary files."""
    remove(stage.outputs)
    ended = run(stage, refuse_repeated_work) if resumes else run(stage)
    check(ended.code == 0, f"the next run fails:\n{ended.output}")
    different = {path for path, _ in digests(stage.outputs).items() ^ stage.expected.items()}
    check(not different, f"the next run writes other bytes: {', '.join(sorted(different))}")
    left = leftovers(Path.cwd())
    check(not left, f"left behind after the next run: {', '.join(left)}")


Case = tuple[Stage, str, Any]


def try_case(case: Case, rng: random.Random) -> None:
    """NotSurvivedError if the stage does not survive the fault."""
    stage, kind, where = case
    remove([*stage.outputs, *([CACHES[stage.name]] if stage.name in CACHES else [])])
    REACHED.value = False
    if kind in SIGNALS:
        ended = run(stage, send_signal(SIGNALS[kind], where))
        code = 1 if kind == "interrupt" else -SIGNALS[kind]
        check_message(ended, (code,) if REACHED.value else (0,))
    elif kind in DISKS:
        ended = run(stage, broken_disk(DISKS[kind], where))
        complete = digests(stage.outputs) == stage.expected  # the disk failed after the last write
        check_message(ended, (0, 1) if complete else (1,))
    elif kind == "no room":
        # no file can exceed so many bytes: the kernel's error, in whatever library writes
        check_message(run(stage, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (where, -1))), (1,))
    elif kind == "two at once":
        try_two_at_once(stage, where)
    else:
        try_damaged_input(case, rng)
    check_outputs(stage)
    check_next_run(stage, resumes=stage.name == "sam_masks@r1" and (kind in SIGNALS or kind in DISKS))


def try_two_at_once(stage: Stage, delay: float) -> None:
    both = [start(stage, lambda: None)]
    time.sleep(delay)
    both.append(start(stage, lambda: None))
    for ended in [wait(*process) for process in both]:
        check_message(ended, (0, 1))
        check(ended.code == 0 or "another process" in ended.output, f"one of two fails:\n{ended.output}")


def try_damaged_input(case: Case, rng: random.Random) -> None:
    """Damage an input before the run, or at one of its events."""
    stage, kind, (path, event) = case
    content = Path(path).read_bytes()
    try:
        if event is None:
            damage(Path(path), kind, rng)
            ended = run(stage)
        else:
            ended = run(stage, lambda: at_event(lambda n: damage(Path(path), kind, rng) if n == event else None))
        check_message(ended, (0, 1))
        if ended.code == 0 and event is None and kind != "swapped" and not path.startswith(LOGS):
            check_outputs(stage)  # the damage has no effect
    finally:
        Path(path).write_bytes(content)
    if ended.code == 0:
        remove(stage.outputs)


def all_cases(stages: list[Stage], rng: random.Random) -> Iterator[Case]:
    for stage in stages:
        for kind in (*SIGNALS, *DISKS):
            yield from ((stage, kind, event) for event in range(1, stage.events + 1))
        sizes = {0, 1, stage.largest - 1, *(rng.randrange(stage.largest) for _ in range(5))}
        yield from ((stage, "no room", size) for size in sorted(sizes))
        yield from ((stage, "two at once", rng.random() * 0.5) for _ in range(3))
        for path in stage.read:
            yield from ((stage, kind, (path, None)) for kind in INPUTS)
        for path in rng.sample(stage.read, min(5, len(stage.read))):
            yield (stage, rng.choice(INPUTS), (path, rng.randint(1, stage.events)))


def learn(stage: Stage) -> None:
    """Run the stage undisturbed, and record what it writes, reads and changes."""
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as opened:
        events = Value("i", 0)

        def record() -> None:
            def act(n: int) -> None:
                events.value = n

            at_event(act, lambda path: print(path, file=opened, flush=True))

        ended = run(stage, record)
        check(ended.code == 0, f"{stage.name} fails undisturbed:\n{ended.output}")
        opened.seek(0)
        read = set(opened.read().splitlines())
    stage.events = events.value
    stage.expected = digests(stage.outputs)
    stage.largest = max(Path(path).stat().st_size for path in stage.expected)
    stage.read = sorted(path for path in read if path.startswith(tuple(stage.inputs)) and Path(path).is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, help="size of a random sample of all cases")
    parser.add_argument("--stages", nargs="+", help="only these stages of dvc.yaml")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)  # a fork does not have its parent's threads
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        stages = make_project(Path(folder))
        chosen = [stage for stage in stages if options.stages is None or stage.name.split("@")[0] in options.stages]
        for stage in stages[: stages.index(chosen[-1]) + 1]:
            learn(stage)
        cases = list(all_cases(chosen, rng))
        if options.cases is not None and options.cases < len(cases):
            cases = rng.sample(cases, options.cases)
        started, failures = time.monotonic(), 0
        for case in ProgressBar(cases, desc="faults", unit="case"):
            try:
                try_case(case, rng)
            except NotSurvivedError as problem:
                failures += 1
                print(f"{case[0].name}, {case[1]} {case[2]}: {problem}", flush=True)
                remove([*case[0].outputs, "models/.work"])
                for left in leftovers(Path(folder)):
                    Path(left).unlink(missing_ok=True)
                learn(case[0])
        os.chdir("/")
    minutes = (time.monotonic() - started) / 60
    print(", ".join(f"{count} {kind}" for kind, count in Counter(kind for _, kind, _ in cases).most_common()))
    print(f"{len(cases)} faults injected in {minutes:.1f} min, {len(cases) - failures} survived")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
