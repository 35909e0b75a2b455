"""The rows of the ablations: every one changes params to valid ones, and the tables hold what was run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_params
from dvc.utils.hydra import apply_overrides

from benchmarks import ablation_results
from benchmarks.ablation_document import Figures, by_class, gains, preset, spread, table, write
from benchmarks.ablation_results import RESULTS, Result, Results, git
from benchmarks.ablation_rows import Row, labels, other_sams, steps, supervision, training
from sesam.errors import SesamError
from sesam.params import load_params
from sesam.presets import load_preset

PARAMS = load_preset(ROOT / "presets/demo.yaml")
SAM2 = {"sam2": ROOT / "params.yaml"}  # any file
OTHERS = [row for row in other_sams(SAM2) if row.name.startswith(("sam-vit", "sam-sam2"))]
ROWS = [*supervision(PARAMS), *steps(), *training(), *labels(), *OTHERS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_changes_the_demos_params_to_valid_ones(row: Row, tmp_path: Path) -> None:
    write_params(tmp_path, "demo")
    apply_overrides(tmp_path / "params.yaml", list(row.changes))
    changed = load_params(tmp_path / "params.yaml")
    assert (changed == PARAMS) == (row.name == "scribble")  # what the demo does anyway


def test_names_differ() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_spread() -> None:
    assert spread([0.5, 0.7]) == "0.600 ± 0.141" and spread([0.5]) == "0.500"
    assert spread(None) == spread([]) == spread([0.5, None]) == "–"
    assert spread([100.0, 101.0], 1) == "100.5 ± 0.7"


def test_a_table_has_the_rows_that_were_run_and_the_last_rounds_labels() -> None:
    values = {f"{r} {m}": [0.1 * k] for k, r in ((1, "r1"), (2, "r2")) for m in ("precision", "recall", "mIoU")}
    values |= {"iterations": [300], "commit": ["abc123"], "teacher": [0.3], "r1": [0.4], "r2": [0.5]}
    found = {"one": values, "two": {}}
    lines = table([Row("one", "One", ("a=1",)), Row("two", "Two")], found, ("teacher", "r1", "r2"))
    assert lines[2:] == ["| One | 0.200 | 0.200 | 0.200 | 0.300 | 0.400 | 0.500 | 300 | 1 | abc123 | `a=1` |"]


def ran(commit: str = "abc", base: str = "", current: bool = False, seeds: tuple[int, ...] = (0, 1)) -> Figures:
    """What the figures of a row say of how it was run."""
    about = {"iterations": 300, "commit": commit, "base": base, "current": current}
    return {"seed": list(seeds)} | {name: [value] * len(seeds) for name, value in about.items()}


SCRIBBLE = {
    "r1 mIoU": [0.7, 0.7],
    "r2 mIoU": [0.8, 0.8],
    "teacher": [0.4, 0.4],
    "r1": [0.1, 0.1],
    "r2": [0.5, 0.57],
}
FINE, NO_SAM = {"r1": [0.5, 0.6]}, {"r1": [0.45, 0.45]}


def test_gains_are_of_the_same_seed() -> None:
    one = {"r1 mIoU": [0.7], "teacher": [0.4], "r1": [0.45]}
    found = {row.name: {} for row in ROWS} | {
        "fine": ran() | FINE,
        "scribble": ran() | SCRIBBLE,
        "scribble-no-sam": ran() | NO_SAM,
        "point": ran(seeds=(0,)) | one,
        "point-no-sam": ran(seeds=(0,)) | {"iterations": [400], "r1": [0.2]},
    }
    assert gains(found)[2:] == [
        "| scribble | 97.5 ± 3.5 | 13.5 ± 4.9 | 8.5 ± 4.9 |",
        "| point | – | 5.0 | – |",  # not with fine labels' seeds, nor with another's iterations
    ]
    found |= {"point": {}, "fine": ran(seeds=(0, 2)) | FINE}  # as many, but others
    assert gains(found)[2:] == ["| scribble | – | 13.5 ± 4.9 | 8.5 ± 4.9 |"]


@pytest.mark.parametrize(
    ("fine", "marked"),
    [
        (ran("abc", "5 wide"), False),
        (ran("def", "5 wide"), True),
        (ran("abc", "3 wide"), True),
        (ran("abc", ""), False),  # an older result: all that is known of it is the commit
        (ran("def", "3 wide", current=True), True),
    ],
)
def test_gains_over_rows_of_other_code_or_params_are_marked(fine: Figures, marked: bool) -> None:
    found = {row.name: {} for row in ROWS} | {"fine": fine | FINE, "scribble": ran("abc", "5 wide") | SCRIBBLE}
    last = ["", r"\* The two rows were run with other code or params, see `commit`."] if marked else []
    assert gains(found)[2:] == [f"| scribble | 97.5 ± 3.5{' *' * marked} | 13.5 ± 4.9 | – |", *last]


def test_rows_of_now_differ_in_nothing_but_what_they_change() -> None:
    found = {row.name: {} for row in ROWS} | {
        "fine": ran("abc", "scribbles", current=True) | FINE,
        "scribble": ran("def", "points", current=True) | SCRIBBLE,  # code taken back; the base's kind, which all change
    }
    assert gains(found)[2:] == ["| scribble | 97.5 ± 3.5 | 13.5 ± 4.9 | – |"]


def test_classes_of_the_last_rounds_labels() -> None:
    one = {f"{r} mIoU": [0.5] for r in ("r1", "r2")}
    one |= {"r1 IoU car": [0.1], "r1 IoU sky": [0.2], "r2 IoU car": [0.3], "r2 IoU sky": [None]}
    lines = by_class([Row("one", "One"), Row("older", "Older")], {"one": one, "older": {"r1 mIoU": [0.5]}})
    assert lines[2:5] == ["| IoU of labels | car | sky |", "| --- | --- | --- |", "| One | 0.300 | – |"]


def test_the_document_names_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    idd = load_preset(ROOT / "presets/idd.yaml")
    elsewhere = idd.model_copy(update={"dataset": idd.dataset.model_copy(update={"root": "/data/mine"})})
    assert preset(elsewhere) == "`presets/idd.yaml`"
    assert preset(idd.model_copy(update={"rounds": {}})) == "params for idd"


REST = "rounds: {r1: {}}\nstudent: {iterations: 9}\n"  # of params that the tests do not change


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one stage that decides and two that present."""
    monkeypatch.chdir(tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b.c")
    git("init", "-q")
    for path in ("stages/code.py", "stages/summarize.py", "stages/report.py", "models/bundled_sam.pth"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("1")
    Path("params.yaml").write_text(f"seed: 5\nn: 1\nruntime: {{workers: 2}}\n{REST}")
    stages = {name: {"cmd": name, "deps": [f"stages/{name}.py"]} for name in ("code", "summarize", "report")}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    committed("base")
    return tmp_path


def committed(message: str) -> str:
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", message)
    for cached in (ablation_results.made_of, ablation_results.changed_params, ablation_results.last_change):
        cached.cache_clear()  # HEAD is another
    return git("rev-parse", "HEAD")


LABELS = {
    "scores": {"merged": {"precision": 0.9, "recall": 0.8, "mIoU": 0.7}},
    "classes": {"merged": {"road": {"IoU": 0.7}}},
}


def experiment(name: str, params: str, mean: float) -> None:
    """What `dvc exp run -n NAME` leaves behind."""
    base = git("rev-parse", "HEAD")
    Path("params.yaml").write_text(params)
    for path, content in (
        ("metrics/labels/r1.json", LABELS),
        ("metrics/summary.json", {"teacher": 0.1, "r1": mean}),
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content))
    git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", committed("a result"))
    git("reset", "-q", "--hard", base)


ROW = Row("row", "Row", ("n=2",))


def collected() -> Results:
    results = Results.load()
    results.collect([ROW])
    results.save()
    return results


def test_what_was_run_with_the_code_and_params_of_now_is_not_run_again(repository: Path) -> None:
    assert not collected().is_current(ROW, 0)
    experiment("row-s0", f"seed: 0\nn: 2\nruntime: {{workers: 1}}\n{REST}", 0.5)
    experiment("row-s1", f"seed: 1\nn: 3\nruntime: {{workers: 1}}\n{REST}", 0.6)
    results = collected()
    assert results.is_current(ROW, 0) and not results.is_current(ROW, 1)  # the second was of another row
    assert results.figures(ROW) == {
        "iterations": [9],
        "teacher": [0.1],
        "r1": [0.5],
        "r1 precision": [0.9],
        "r1 recall": [0.8],
        "r1 mIoU": [0.7],
        "r1 IoU road": [0.7],
        "seed": [0],
        "commit": [git("rev-parse", "--short", "HEAD")],
        "base": [results.by_row["row"][0].base],
        "current": [True],
    }
    Path("docs/page.md").write_text("text")  # neither this nor the next is a part of what decides a result
    for name in ("summarize", "report"):
        Path(f"stages/{name}.py").write_text("2")
    committed("docs")
    results = collected()
    assert results.is_current(ROW, 0)
    assert results.figures(ROW)["commit"] == [git("rev-parse", "--short", "HEAD~1")]
    git("update-ref", "-d", git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/row-s0"))
    assert collected().is_current(ROW, 0)  # as after a clone


def test_what_was_run_with_other_code_stays_until_it_is_run_again(repository: Path) -> None:
    old = git("rev-parse", "--short", "HEAD")
    for seed in (0, 1):
        experiment(f"row-s{seed}", f"seed: {seed}\nn: 2\n{REST}", 0.5 + seed)
    assert collected().figures(ROW)["r1"] == [0.5, 1.5]
    Path("stages/code.py").write_text("2")
    committed("code")
    results = collected()
    assert not results.is_current(ROW, 0)
    assert results.figures(ROW)["r1"] == [0.5, 1.5] and results.figures(ROW)["commit"] == [old, old]
    experiment("row-s1", f"seed: 1\nn: 2\n{REST}", 0.25)
    results = collected()
    assert results.figures(ROW)["r1"] == [0.25] and results.figures(ROW)["commit"] != [old]  # never two in one mean


def test_seeds_of_other_params_are_not_in_one_mean(repository: Path) -> None:
    for iterations, seeds in ((9, (0,)), (7, (1, 2)), (8, ())):
        rest = REST.replace("9", str(iterations))
        Path("params.yaml").write_text(f"seed: 5\nn: 1\n{rest}")
        committed("params")
        for seed in seeds:
            experiment(f"row-s{seed}", f"seed: {seed}\nn: 2\n{rest}", seed)
        results = collected()
    assert not results.is_current(ROW, 1)
    assert results.figures(ROW)["r1"] == [1, 2] and results.figures(ROW)["iterations"] == [7, 7]


def test_the_base_is_the_params_before_the_row_and_the_seed_change_them(repository: Path) -> None:
    bases = []
    for base, changed in (
        ("seed: 5\nn: 1", "n: 2"),
        ("seed: 6\nn: 1", "n: 2"),
        ("seed: 6\nn: 1\nwide: 3", "n: 2\nwide: 3"),
    ):
        Path("params.yaml").write_text(f"{base}\n{REST}")
        committed("params")
        experiment("row-s0", f"seed: 0\n{changed}\n{REST}", 0.5)
        bases += collected().figures(ROW)["base"]
    assert bases[0] == bases[1] != bases[2]


def base_of_other_code(text: str) -> str:
    """A commit with other code, and an experiment there."""
    Path("stages/code.py").write_text(text)
    commit = committed("code")
    experiment("row-s0", f"seed: 0\nn: 2\n{REST}", float(text))
    return commit


def test_of_older_codes_figures_the_newest_stay(repository: Path) -> None:
    bases: list[str] = []
    while len(bases) < 2 or bases[-1] == max(bases):  # in the order of names an older one is last
        bases.append(base_of_other_code(str(len(bases) + 2)))
    Path("stages/code.py").write_text("0")
    committed("code")
    newest = [float(len(bases) + 1)]
    assert collected().figures(ROW)["r1"] == newest
    git("update-ref", "-d", git("for-each-ref", "--format=%(refname)", f"refs/exps/{bases[-1][:2]}/{bases[-1][2:]}"))
    assert collected().figures(ROW)["r1"] == newest  # from the file alone; the experiments here are older


def test_of_other_params_figures_the_newest_stay(repository: Path) -> None:
    bases: list[str] = []
    while len(bases) < 2 or bases[-1] == max(bases):
        Path("params.yaml").write_text(f"seed: 5\nn: 1\nwide: {len(bases)}\n{REST}")
        bases.append(committed("params"))
        experiment("row-s0", f"seed: 0\nn: 2\nwide: {len(bases) - 1}\n{REST}", len(bases))
    Path("params.yaml").write_text(f"seed: 5\nn: 1\n{REST}")
    committed("params")
    assert collected().figures(ROW)["r1"] == [len(bases)]


def test_figures_of_code_that_is_no_part_of_history_give_way_to_those_of_now(repository: Path) -> None:
    first = git("rev-parse", "HEAD")
    base_of_other_code("2")
    assert collected().figures(ROW)["r1"] == [2.0]
    git("checkout", "-q", first)  # as after a rebase; the commit is still known here
    base_of_other_code("3")
    results = collected()
    assert results.is_current(ROW, 0) and results.figures(ROW)["r1"] == [3.0]


def test_figures_of_an_unknown_commit_give_way(repository: Path) -> None:
    base_of_other_code("2")
    Path("stages/code.py").write_text("3")
    committed("code")
    results = Results({"row": {0: Result("made", "0123abc", {"r1": 0.5})}})
    results.collect([ROW])
    assert results.figures(ROW)["r1"] == [2.0]


PLAIN = "Scribbles. To compare with: `scribble, SeSAM` above"
OTHER = ", which was run with other code or params, see `commit`"


@pytest.mark.parametrize(
    ("scribble", "changed", "sentence"),
    [(True, True, f"{PLAIN}."), (True, False, f"{PLAIN}{OTHER}."), (False, False, f"{PLAIN}.")],
)
def test_the_document_says_which_rows_were_run_otherwise(
    repository: Path, scribble: bool, changed: bool, sentence: str
) -> None:
    shutil.copytree(ROOT / "presets", "presets")
    write_params(Path(), "demo")
    committed("params")
    groups = {"Supervision": supervision(PARAMS), "Steps": steps(), "Training": training(), "Labels": labels()}
    groups["Other SAMs"] = []
    rows = {row.name: row for several in groups.values() for row in several}
    about = dict.fromkeys(("r1 precision", "r1 recall", "r1 mIoU", "r1", "teacher", "iterations"), 0.5)
    results = Results({}, Path("docs/x.json"))
    for name, current in (("scribble", scribble), ("labeling", changed)):
        made = ablation_results.now(rows[name], 0) if current else "earlier"
        results.by_row[name] = {0: Result(made, "new" if current else "old", about)}
    write(PARAMS, groups, results, Path("docs/x.md"))
    lines = Path("docs/x.md").read_text().splitlines()
    assert "with `presets/demo.yaml`, as that was when each row was run." in lines[2] and sentence in lines


def test_damaged_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RESULTS.parent.mkdir()
    for text in ("{", "[]", '{"row": {"0": {"figure": 1}}}'):
        RESULTS.write_text(text)
        with pytest.raises(SesamError, match=r"ablations\.json cannot be read"):
            Results.load()


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results = Results({"row": {2: Result("made", "abc", {"r1": 0.25})}})
    results.save()
    assert Results.load().by_row == results.by_row
