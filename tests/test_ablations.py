"""The rows of the ablations: every one changes params to valid ones, and the tables hold what was run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from dvc.utils.hydra import apply_overrides

from benchmarks import ablations
from benchmarks.ablations import Row, labels, spread, steps, supervision, table, training
from stages.common.params import load_params

PARAMS = load_params(ROOT / "presets/demo.yaml")
ROWS = [*supervision(PARAMS), *steps(), *training(), *labels()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_changes_the_demos_params_to_valid_ones(row: Row, tmp_path: Path) -> None:
    shutil.copy(ROOT / "presets/demo.yaml", tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", list(row.changes))
    changed = load_params(tmp_path / "params.yaml")
    assert (changed == PARAMS) == (row.name == "scribble")  # what the demo does anyway


def test_names_differ() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_spread() -> None:
    assert spread([0.5, 0.7]) == "0.600 ± 0.141" and spread([0.5]) == "0.500"
    assert spread(None) == spread([]) == spread([0.5, None]) == "–"


def test_a_table_has_the_rows_that_were_run_and_the_last_rounds_labels() -> None:
    values = {f"{r} {m}": [0.1 * k] for k, r in ((1, "r1"), (2, "r2")) for m in ("precision", "recall", "mIoU")}
    found = {"one": values | {"teacher": [0.3], "r1": [0.4], "r2": [0.5]}, "two": {}}
    lines = table([Row("one", "One", ("a=1",)), Row("two", "Two")], found, ("teacher", "r1", "r2"))
    assert lines[2:] == ["| One | 0.200 | 0.200 | 0.200 | 0.300 | 0.400 | 0.500 | 1 | `a=1` |"]


def test_only_experiments_of_the_present_code_and_params_count(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for key, value in (
        ("AUTHOR_NAME", "a"),
        ("AUTHOR_EMAIL", "a@b.c"),
        ("COMMITTER_NAME", "a"),
        ("COMMITTER_EMAIL", "a@b.c"),
    ):
        monkeypatch.setenv(f"GIT_{key}", value)
    ablations.git("init", "-q")
    for path in ("stages/code.py", "stages/summarize.py", "models/embedded_sam.pth"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("1")
    Path("params.yaml").write_text("seed: 5\nn: 1\nruntime: {workers: 2}\n")
    stages = {name: {"cmd": name, "deps": [f"stages/{name}.py"]} for name in ("code", "summarize")}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    def committed(message: str) -> str:
        ablations.git("add", "-A")
        ablations.git("commit", "-q", "--allow-empty", "-m", message)
        return ablations.git("rev-parse", "HEAD")

    base = committed("one")
    Path("params.yaml").write_text("seed: 0\nn: 2\nruntime: {workers: 1}\n")
    result = committed("a result")
    ablations.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/row-s0", result)
    ablations.git("reset", "-q", "--hard", base)
    row = Row("row", "Row", ("n=2",))
    ablations.changed_params.cache_clear()
    assert ablations.experiments(row) == {0: result}
    assert ablations.experiments(Row("row", "Row", ("n=3",))) == {}  # the row was another
    Path("docs.md").write_text("text")  # neither this nor the next is a part of what decides a result
    Path("stages/summarize.py").write_text("2")
    committed("docs")
    assert ablations.experiments(row) == {0: result}
    Path("stages/code.py").write_text("2")
    committed("code")
    assert ablations.experiments(row) == {}
    ablations.changed_params.cache_clear()
