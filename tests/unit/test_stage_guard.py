"""Around a stage: outputs of two runs are not used, nor what DVC restored from a damaged object, nor links written."""

import hashlib
import json
import os
import runpy
import shutil
import sys
from itertools import count
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_params

from sesam.artifacts import stage_guard
from sesam.artifacts.archives import path_to_delete
from sesam.artifacts.atomic_io import atomic_directory, write_text
from sesam.artifacts.dvc_outputs import cached_object, find_damaged_files, find_damaged_objects, overlap
from sesam.artifacts.fingerprint import Stage, find_stage
from sesam.errors import SesamError
from sesam.params import load_params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(stage_guard.BY_DVC, raising=False)
    write_params(tmp_path)
    return tmp_path


def known_stages() -> list[Stage]:
    """The stages of dvc.yaml with the demo's params."""
    params = load_params(ROOT / "params.yaml").model_dump(mode="json")
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    commands = [entry.get("do", entry)["cmd"].replace("${key}", key) for entry in entries for key in ("r1", "demo")]
    stages = [find_stage(command, params) for command in dict.fromkeys(commands)]
    return [stage for stage in stages if stage is not None]


STAGES = known_stages()


def test_commands_lead_to_their_stages() -> None:
    found = {stage.name: stage for stage in STAGES}
    assert {"demo_data@demo", "prepare", "evaluate_baseline", "evaluate@r1", "report"} <= found.keys()
    assert len(found) == len(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert found["evaluate@r1"].outs == [Path("metrics/networks/r1.json"), Path("metrics/report_predictions/r1")]
    assert Path("metrics/summary.json") in found["summarize"].outs
    assert Path("models/none") in found["teacher_predictions@r1"].deps


def write(path: Path, content: str) -> None:
    """An output, as stages write them: a file, a folder, or files one by one."""
    if path.suffix:
        write_text(path, content)
    elif path.parts[0] == "models" or path == Path("data/dataset"):
        for name in ("a.json", "b.json"):
            write_text(path / name, content)
    else:
        with atomic_directory(path) as folder:
            (folder / "a.json").write_text(content)


def contents(stage: Stage) -> set[str]:
    """The words in a stage's outputs; "" for a missing one."""
    files = [file for out in stage.outs for file in (out.rglob("[a-z]*.json") if out.is_dir() else [out])]
    return {file.read_text() if file.exists() else "" for file in files}


class Runner:
    """Runs stages of dvc.yaml, of which each writes a word to its outputs and does nothing else."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        params = load_params()
        self.patch, self.stage = patch, STAGES[0]
        patch.setattr(sys.modules["__main__"], "__spec__", json.__spec__)
        patch.setattr(stage_guard, "load_params", lambda: params)
        patch.setattr(stage_guard, "find_stage", lambda command, params: self.stage)

    def run(self, stage: Stage, word: str | None = None) -> None:
        self.stage = stage
        with stage_guard.guard_stage():
            for out in stage.outs if word else ():
                write(out, word)

    def stop(self, stage: Stage, word: str, place: int, killed: bool) -> bool:
        """Run a stage until something appears for the `place`-th time; whether it came so far."""
        replace, calls = os.replace, count()

        def stop(source: object, target: object) -> None:
            if next(calls) < place:
                return replace(source, target)
            if killed:  # then nothing is put in order
                patch.setattr(Path, "unlink", lambda *_, **__: None)
                patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise KeyboardInterrupt

        with self.patch.context() as patch:
            patch.setattr(os, "replace", stop)
            try:
                self.run(stage, word)
            except KeyboardInterrupt:
                return True
        return False

    def is_refused(self, stage: Stage) -> bool:
        try:
            self.run(stage)
        except SesamError as error:
            return "may be of two runs. Run `dvc repro -sf" in str(error)
        return False


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if len(stage.outs) > 1], ids=lambda stage: stage.name)
def test_outputs_of_two_runs_are_not_used(
    stage: Stage, killed: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, mixes = Runner(monkeypatch), 0
    readers = [reader for reader in STAGES if reader != stage and overlap(stage.outs, reader.deps)][:2]
    runner.run(stage, "old")
    for place in count():
        if not runner.stop(stage, "new", place, killed):
            break
        assert place or not any(map(runner.is_refused, readers))  # not even the note was written
        if contents(stage) != {"old"}:
            mixes += 1
            assert all(map(runner.is_refused, readers))
            runner.stop(stage, "other", 0, killed)  # before it has changed anything
            assert all(map(runner.is_refused, readers))
        runner.run(stage, "old")
        assert contents(stage) == {"old"} and not any(map(runner.is_refused, readers))
        assert not list(Path().glob(stage_guard.UNFINISHED.format("*")))
    assert mixes >= len(stage.outs) - 1


def test_a_run_by_dvc_needs_no_note(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It removes the outputs first. A run that it finishes ends what one by hand has left."""
    runner, (stage,) = Runner(monkeypatch), [stage for stage in STAGES if stage.name == "merge_labels@r1"]
    runner.run(stage, "old")
    assert runner.stop(stage, "new", 1, killed=True)  # before its first output
    assert not any(map(runner.is_refused, STAGES))
    assert runner.stop(stage, "new", 3, killed=True)
    unfinished = Path(stage_guard.UNFINISHED.format(stage.name))
    assert unfinished.exists()
    monkeypatch.setenv(stage_guard.BY_DVC, stage.name)
    runner.run(stage, "new")
    assert not unfinished.exists()
    assert runner.stop(stage, "old", 2, killed=True) and not unfinished.exists()


def run_module(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a stage says when it ends."""
    monkeypatch.setattr(sys, "argv", [*arguments])
    monkeypatch.delitem(sys.modules, arguments[0], raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    return str(ended.value.code)


def test_a_stage_is_guarded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = Path(stage_guard.UNFINISHED.format("weak_labels"))
    mark.parent.mkdir()
    mark.write_text('{"data/weak": null, "metrics/annotations.json": null}')
    assert "data/dataset/classes.json is missing" in run_module(monkeypatch, "stages.select_masks", "r1")
    Path("data/weak").mkdir()
    message = run_module(monkeypatch, "stages.select_masks", "r1")
    assert message.startswith("error: weak_labels was stopped when it had written data/weak, and")
    assert message.endswith(f"Run `dvc repro -sf weak_labels`; or delete {mark}, if they were restored since.")
    Path("data/rounds").symlink_to(project)
    assert "data/rounds is a link" in run_module(monkeypatch, "stages.select_masks", "r1")


def add(content: bytes, suffix: str = "", stored: bytes | None = None) -> tuple[str, Path]:
    """An object of DVC's cache in the folder lab: its MD5 and path. stored: what it holds instead."""
    md5 = hashlib.md5(content).hexdigest() + suffix
    path = Path("lab/files/md5", md5[:2], md5[2:])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if stored is None else stored)
    return md5, path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[cache]\ndir = /data/100%cache\n", "/data/100%cache"),
        ('[cache]\n    dir = "~/lab cache"\n', "/home/ann/lab cache"),
        ("[cache]\ndir = ../lab\n", "lab"),
        ("no section\n", "/everyone"),
        ("", "/everyone"),
    ],
)
def test_the_cache_is_where_dvc_has_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(project))
    Path("config").write_text("[cache]\ndir = /everyone\n")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(text)
    found = project / cached_object("0123456789abcdef0123456789abcdef")
    assert found.resolve() == project / expected / "files/md5/01/23456789abcdef0123456789abcdef"


def test_what_dvc_restored_from_a_damaged_object_is_not_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC takes each object as whole, so that to delete the file alone would bring the damage back."""
    (whole, _), (other, damaged) = add(b"a"), add(b"bcd", stored=b"b")
    listing = json.dumps([{"md5": whole, "relpath": "x/a.png"}, {"md5": other, "relpath": "x/b.png"}]).encode()
    folder, listed = add(listing, ".dir")
    Path("dvc.lock").write_text(f"stages: {{weak: {{outs: [{{path: data/weak, md5: {folder}}}]}}}}")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n[cache]\n    dir = ../lab\n")
    weak, (a, b) = Path("data/weak"), (Path(f"data/weak/x/{name}.png") for name in "ab")
    b.parent.mkdir(parents=True)
    assert find_damaged_files([weak]) == []  # missing
    for file in (a, b):
        file.write_bytes(b"b")  # a was written since: its object is whole
    assert (path_to_delete(a), path_to_delete(b)) == ("it", f"it and {damaged}")
    assert find_damaged_objects(weak) == [damaged]
    assert find_damaged_files([weak]) == find_damaged_files([Path("data")]) == find_damaged_files([b]) == [b]
    assert find_damaged_files([a, Path("models")]) == []
    expected = f"{b} is damaged: .* Delete it and {damaged} and run `dvc repro`"
    with pytest.raises(SesamError, match=expected):
        Runner(monkeypatch).run(next(stage for stage in STAGES if stage.name == "select_masks@r1"))
    for content in (b"bcd", b"written since"):
        b.write_bytes(content)
        assert find_damaged_files([weak]) == []
    listed.write_bytes(listing.replace(b"a.png", b"c.png").replace(b"b.png", b"a.png"))
    assert find_damaged_files([weak]) == [weak]
    assert path_to_delete(weak) == f"it and {listed}"
    for lock in (
        "stages: {a: {outs: [{path: data/weak, md5: ../../x}]}}",
        "stages: 3",
        "]",
        "[" * 100_000,
        "stages: {a: {}}",
    ):
        Path("dvc.lock").write_text(lock)
        assert find_damaged_objects(weak) == find_damaged_files([weak]) == []
