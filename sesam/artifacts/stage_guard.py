"""Around each stage: what it reads is whole and of one run, and what it writes is in this repository."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sesam.artifacts.archives import damaged_artifact
from sesam.artifacts.atomic_io import check_no_link, read_json, write_json
from sesam.artifacts.dvc_outputs import find_damaged_files, overlap
from sesam.artifacts.fingerprint import Stage, find_stage
from sesam.errors import MAX_SHOWN, SesamError
from sesam.params import load_params

UNFINISHED = "data/.{}.unfinished.partial"  # of a stage: what its outputs were before it began
BY_DVC = "DVC_STAGE"  # environment variable; DVC removes a stage's outputs first, and runs it until it ends well
GUARDED = "SESAM_GUARDED"  # environment variable, for the processes that a stage starts


@contextmanager
def guard_stage() -> Iterator[None]:
    """The context in which the stage on the command line runs; SesamError if its inputs must not be used.

    A stage that is run by hand and stopped between two outputs leaves a mix of two runs. The file UNFINISHED tells the
    stages that depend on them, until it has run again.
    """
    program = sys.modules["__main__"].__spec__
    assert program is not None  # it is run with -m
    command = " ".join(["python", "-m", program.name, *sys.argv[1:]])
    stage = None if GUARDED in os.environ else find_stage(command, load_params().model_dump(mode="json"))
    if stage is None:
        yield
        return
    for out in stage.outs:
        check_no_link(out.parent if out.suffix else out)
    _check_finished(stage)
    _check_whole(stage)
    unfinished = Path(UNFINISHED.format(stage.name))
    if BY_DVC not in os.environ and not unfinished.exists():
        write_json(unfinished, {str(out): _identity(out) for out in stage.outs})
    os.environ[GUARDED] = "1"
    try:
        yield
    except BaseException:
        if not _changed(unfinished):
            unfinished.unlink(missing_ok=True)
        raise
    finally:
        del os.environ[GUARDED]
    unfinished.unlink(missing_ok=True)


def _check_finished(stage: Stage) -> None:
    """SesamError if one depends on outputs of another stage that has changed some of them and was stopped."""
    for unfinished in sorted(Path().glob(UNFINISHED.format("*"))):
        name = unfinished.name[1:].partition(".")[0]
        outs = [Path(out) for out in read_json(unfinished)]
        if name != stage.name and overlap(outs, stage.deps) and (changed := _changed(unfinished)):
            raise SesamError(
                f"{name} was stopped when it had written {changed[0]}, and perhaps not all of its outputs: they may be "
                f"of two runs. Run `dvc repro -sf {name}`; or delete {unfinished}, if they were restored since."
            )


def _check_whole(stage: Stage) -> None:
    """SesamError if a dependency was damaged in DVC's cache. On two cores 2,000 labels take 0.4 s, and a GB 2 s."""
    reason = "it is as a damaged object of DVC's cache is, not as dvc.lock says"
    if damaged := find_damaged_files(stage.deps)[:MAX_SHOWN]:
        raise SesamError("\n  ".join(str(damaged_artifact(path, reason)) for path in damaged))


def _changed(unfinished: Path) -> list[Path]:
    """The outputs that are not what they were before the stage began."""
    before = read_json(unfinished) if unfinished.exists() else {}
    return [Path(out) for out in before if _identity(Path(out)) != before[out]]


def _identity(path: Path) -> list[int] | None:
    """What changes when a file is replaced, or a file of a folder; None if it is missing."""
    if not path.exists():
        return None
    return [path.stat().st_ino, path.stat().st_mtime_ns]
