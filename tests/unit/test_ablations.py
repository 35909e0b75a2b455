"""The ablations: every row changes params to valid ones, and the tables hold what was run, one version per table."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, write_params
from dvc.utils.hydra import apply_overrides
from PIL import Image

from benchmarks import ablation_results, ablation_tables, ablations
from benchmarks.ablation_results import RESULTS, Figures, Result, Results, git
from benchmarks.ablation_rows import (
    BUDGETS,
    STUDENT_ALONE,
    Row,
    budgets,
    other_sams,
    steps,
    supervision,
    tables,
)
from benchmarks.ablation_tables import class_table, gain_table, hours_of, score_table, spread, write_page
from benchmarks.ablations import check_params, rows_by_word
from sesam.datasets.importer import choose_subset
from sesam.datasets.layouts import ImagePair
from sesam.errors import SesamError
from sesam.params import MixParams, WeakLabelParams, load_params
from sesam.presets import load_preset

PARAMS = load_preset(ROOT / "presets/demo.yaml")
SAM2 = {"sam2": ROOT / "params.yaml"}  # any file
OTHERS = [row for row in other_sams(SAM2) if row.name.startswith(("sam-vit", "sam-sam2", "sam3"))]
TABLES = tables(PARAMS, SAM2)
ROWS = [*(row for title, rows in TABLES.items() if title != "Other SAMs" for row in rows), *OTHERS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_changes_the_demo_params_to_valid_ones(row: Row, tmp_path: Path) -> None:
    write_params(tmp_path, "demo")
    apply_overrides(tmp_path / "params.yaml", list(row.changes))
    changed = load_params(tmp_path / "params.yaml")
    assert (changed == PARAMS) == (row.name in ("scribble", "points-20"))  # the default


def test_spread() -> None:
    assert spread([0.5, 0.7]) == "0.600 ± 0.141" and spread([0.5]) == "0.500"
    assert spread([]) == spread([0.5, None]) == "–"
    assert spread([100.0, 101.0], 1) == "100.5 ± 0.7"


def test_score_table_has_the_rows_that_were_run() -> None:
    figures = {f"{r} {m}": [0.1 * k] for k, r in ((1, "r1"), (2, "r2")) for m in ("precision", "recall", "mIoU")}
    figures |= {"baseline": [0.3], "r1": [0.4], "r2": [0.5]}
    rows, found = [Row("one", "One", ("a=1",)), Row("two", "Two")], {"one": figures, "two": {}}
    networks = ("baseline", "r1", "r2")
    assert score_table(rows, found, networks)[2:] == ["| One | 0.200 | 0.200 | 0.200 | 0.300 | 0.400 | 0.500 | `a=1` |"]
    assert "| 0.100 | 0.100 | 0.100 |" in score_table(rows, found, networks, "r1")[2]


def ran(seeds: tuple[int, ...] = (0, 1), max_iters: int = 300, **figures: list[float]) -> Figures:
    return {"seed": [*seeds], "max_iters": [max_iters] * len(seeds), **figures}


def test_gains_are_of_the_same_seeds_and_iterations() -> None:
    scribble = ran(baseline=[0.4, 0.4], r1=[0.1, 0.1], r2=[0.5, 0.57]) | {"r2 mIoU": [0.8, 0.8]}
    found = {row.name: {} for row in ROWS} | {
        "fine": ran(r1=[0.5, 0.6]),
        "scribble": scribble,
        "scribble-no-sam": ran(r1=[0.45, 0.45]),
        "point": ran((0,), baseline=[0.4], r1=[0.45]) | {"r1 mIoU": [0.7]},
        "point-no-sam": ran((0,), max_iters=400, r1=[0.2]),
    }
    assert gain_table(found)[2:] == ["| scribble | 97.5 ± 3.5 | 13.5 ± 4.9 | 8.5 ± 4.9 |", "| point | – | 5.0 | – |"]
    found |= {"point": {}, "fine": ran((0, 2), r1=[0.5, 0.6])}
    assert gain_table(found)[2:] == ["| scribble | – | 13.5 ± 4.9 | 8.5 ± 4.9 |"]


@pytest.mark.parametrize(
    ("preset", "count", "expected"), [("demo", 96, [5, 10, 24, 48]), ("idd", 1403, [20, 40, 100, 200])]
)
def test_budgets_are_nested_shares_of_the_images_of_params(preset: str, count: int, expected: list[int]) -> None:
    pairs = [ImagePair(f"{k:04}", Path(), None) for k in range(count)]
    rows = {row.name: row for row in budgets(load_preset(ROOT / f"presets/{preset}.yaml"))}

    def chosen(name: str) -> set[str]:
        share = float(rows[name].changes[-1].removeprefix("dataset.subset="))
        return {pair.id for pair in choose_subset(pairs, share)}

    images = [chosen(f"budget-point-{n}") for n in (5, 10, 25, 50)]
    assert [len(ids) for ids in images] == expected
    assert all(fewer < more for fewer, more in pairwise(images))
    assert images == [chosen(f"budget-fine-scribble-{n}") for n in (5, 10, 25, 50)]


def test_shares_of_listed_images_are_refused() -> None:
    listed = PARAMS.model_copy(update={"dataset": PARAMS.dataset.model_copy(update={"subset": ["0001"]})})
    with pytest.raises(SesamError, match=r"dataset\.subset lists images.*dataset\.exclude"):
        budgets(listed)


def test_a_mix_under_the_rows_is_refused(repository: Path) -> None:
    mixed = PARAMS.model_copy(update={"weak_labels": WeakLabelParams(mix=MixParams(none=0.5))})
    check_params(PARAMS)
    with pytest.raises(SesamError, match=r"weak_labels\.mix must be 0"):
        check_params(mixed)


def test_a_word_chooses_the_rows_of_a_table() -> None:
    rows = rows_by_word({"Supervision": supervision(PARAMS), "Steps": steps(), "Budgets": budgets(PARAMS)})
    names = {row.name for row in rows["budgets"]}
    assert names == {name for by_share in BUDGETS.values() for name in by_share.values()} and len(names) == 30
    assert [row.name for row in rows["budget-fine-5"]] == ["budget-fine-5"]
    assert rows["steps"][0].name == "scribble"


def test_hours_of_a_budget() -> None:
    figures: Figures = {"images fine": [9.0], "images scribble": [39.0], "r1": [0.5]}
    assert hours_of(figures, PARAMS) == pytest.approx((9 * 90 + 39 * 2.2) / 60, abs=1e-4)  # 14.93
    assert hours_of({"images none": [5.0], "images point": [6.0]}, PARAMS) == 0.1
    assert hours_of({"r1": [0.5]}, PARAMS) is hours_of(figures, load_preset(ROOT / "presets/camvid.yaml")) is None


def test_page_of_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(seed: int, mean: float, **images: int) -> dict[str, object]:
        labels = {f"r1 {score}": 0.8 for score in ("precision", "recall", "mIoU")}
        figures = {"r1": mean, "max_iters": 20, **labels, **{f"images {kind}": n for kind, n in images.items()}}
        return {"seed": seed, "commit": "abc", "base": "b", "digest": "d", "figures": figures}

    file = tmp_path / "demo.json"
    mixed = {"budget-fine-scribble-50": [result(0, 0.6, fine=9, scribble=39)]}
    fine = {"budget-fine-5": [result(k, 0.3 + k / 10, fine=5) for k in range(3)]}
    file.write_text(json.dumps(mixed | fine | {"fine": [result(k, 0.7, fine=96) for k in range(3)]}))
    results = Results.load(file)
    monkeypatch.setattr(results, "collect", lambda rows: None)
    monkeypatch.setattr(ablation_tables, "draw_hours", lambda *_: [])
    drawn, save = [], ablation_tables._save
    monkeypatch.setattr(ablation_tables, "_save", lambda figure, *to: drawn.append(figure) or save(figure, *to))
    write_page(PARAMS, {"Supervision": supervision(PARAMS), "Budgets": budgets(PARAMS)}, results, tmp_path / "demo.md")
    page = (tmp_path / "demo.md").read_text()
    page = page[page.index("## Budgets") :]
    assert "| fine | 5 %: 5 fine | 7.5 | 3 | 0.800 ± 0.000 | 0.400 ± 0.100 | `budget-fine-5` |" in page
    assert "| fine | 100 %: 96 fine | 144 | 3 | 0.800 ± 0.000 | 0.700 ± 0.000 | `fine` |" in page
    assert "| fine : scribble = 1 : 4 | 50 %: 9 fine, 39 scribble | 14.9 | 1 | 0.800 | 0.600 |" in page
    assert "Fewer than three seeds, hollow in the chart: `budget-fine-scribble-50` (1)." in page
    assert "1 to 3 seeds a row" in page and "(demo_budgets.png)" in page
    assert Image.open(tmp_path / "demo_budgets.png").size[0] > 500
    curves = {curve.get_label(): list(curve[0].get_xdata()) for curve in drawn[0].axes[0].containers}
    assert curves == {"fine": [7.5, 144], "fine : scribble = 1 : 4": [14.93]}


def test_class_table_is_of_the_last_round() -> None:
    figures = {f"{r} mIoU": [0.5] for r in ("r1", "r2")}
    figures |= {"r1 IoU car": [0.1], "r1 IoU sky": [0.2], "r2 IoU car": [0.3], "r2 IoU sky": [None]}
    lines = class_table([Row("one", "One"), Row("older", "Older")], {"one": figures, "older": {"r1 IoU car": [None]}})
    assert lines == ["| labels: IoU | car | sky |", "| --- | --- | --- |", "| One | 0.300 | – |"]


REST = "rounds: {r1: {}}\nstudent: {}\nschedule: {max_iters: 9}\n"  # params that the tests do not change
ROW = Row("row", "Row", ("n=2",))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one stage that decides and two that present."""
    monkeypatch.chdir(tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b.c")
    git("init", "-q")
    for path in ("stages/code.py", "stages/summarize.py", "stages/report.py", ablation_results.WEIGHTS):
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text("1")
    Path("params.yaml").write_text(f"seed: 5\nn: 1\nruntime: {{num_workers: 2}}\n{REST}")
    stages = {name: {"cmd": name, "deps": [f"stages/{name}.py"]} for name in ("code", "summarize", "report")}
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    commit("base")
    return tmp_path


def commit(message: str) -> str:
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", message)
    for cached in (ablation_results.code_of, ablation_results.changed_params, ablation_results.last_change):
        cached.cache_clear()  # HEAD has moved
    return git("rev-parse", "HEAD")


def experiment(name: str, params: str, mean: float) -> None:
    """What `dvc exp run -n NAME` leaves behind."""
    base = git("rev-parse", "HEAD")
    Path("params.yaml").write_text(params)
    merged = {"scores": {"pseudo_labels": {"precision": 0.9, "recall": 0.8, "mIoU": 0.7}}, "images": {"scribble": 4}}
    content = {
        "labels/r1": merged | {"class_scores": {"pseudo_labels": {"road": {"IoU": 0.7}}}},
        "networks/baseline": {"mIoU": 0.1},
        "networks/r1": {"mIoU": mean},
    }
    for path, metrics in content.items():
        Path("metrics", path).parent.mkdir(parents=True, exist_ok=True)
        Path(f"metrics/{path}.json").write_text(json.dumps(metrics))
    git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", commit("a result"))
    git("reset", "-q", "--hard", base)


def collected() -> Results:
    results = Results.load()
    results.collect([ROW])
    results.save()
    return results


def means(results: Results) -> list[float | None]:
    return results.figures(ROW, results.version_of([ROW]))["r1"]


def test_current_experiments_are_not_run_again(repository: Path) -> None:
    assert not collected().is_current(ROW, 0)
    experiment("row-s0", f"seed: 0\nn: 2\nruntime: {{num_workers: 1}}\n{REST}", 0.5)
    experiment("row-s1", f"seed: 1\nn: 3\nruntime: {{num_workers: 1}}\n{REST}", 0.6)
    results = collected()
    assert results.is_current(ROW, 0) and not results.is_current(ROW, 1)  # the second was another row's
    labels = {"r1 precision": [0.9], "r1 recall": [0.8], "r1 mIoU": [0.7], "r1 IoU road": [0.7]}
    expected = {"max_iters": [9], "baseline": [0.1], "r1": [0.5], **labels, "images scribble": [4], "seed": [0]}
    assert results.figures(ROW, results.version_of([ROW])) == expected
    for name in ("summarize", "report"):  # these decide no result
        Path(f"stages/{name}.py").write_text("2")
    commit("presentation")
    git("update-ref", "-d", git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/row-s0"))
    assert collected().is_current(ROW, 0)  # as in another clone


def test_a_row_that_stops_at_a_student_has_its_figures_alone(repository: Path) -> None:
    rest = REST.replace("{r1: {}}", "{r0: {}, r1: {}}")
    Path("params.yaml").write_text(f"seed: 5\nn: 1\n{rest}")
    commit("two rounds")
    experiment("row-s0", f"seed: 0\nn: 2\n{rest}", 0.5)
    results = Results.load()
    results.collect([Row("row", "Row", ROW.changes, STUDENT_ALONE)])
    figures = results.by_row["row"][0].figures
    assert figures["r1"] == 0.5 and not {"baseline", "r0"} & {*figures}


def test_a_table_has_one_version(repository: Path) -> None:
    for seed in (0, 1):
        experiment(f"row-s{seed}", f"seed: {seed}\nn: 2\n{REST}", 0.5 + seed)
    Path("stages/code.py").write_text("2")
    commit("other code")
    results = collected()
    assert not results.is_current(ROW, 0) and means(results) == [0.5, 1.5]
    experiment("row-s1", f"seed: 1\nn: 2\n{REST}", 0.25)
    assert means(collected()) == [0.25]
    Path("params.yaml").write_text(f"seed: 5\nn: 1\nwide: 3\n{REST}")
    commit("other params")
    experiment("row-s0", f"seed: 0\nn: 2\nwide: 3\n{REST}", 0.75)
    assert sorted(len(collected().figures(ROW, result.version)["seed"]) for result in collected().by_row["row"]) == [
        1,
        1,
        2,
        2,
    ]


def test_a_few_rows_of_newer_code_do_not_replace_a_table(repository: Path) -> None:
    old, new = git("rev-parse", "--short", "HEAD"), commit("newer")
    rows = [Row(f"{k}", f"{k}") for k in range(5)]
    results = Results({row.name: [Result(0, old, "", "x", {"r1": 0.5})] for row in rows})
    for k, expected in enumerate([old, old, new]):
        results.add(rows[k], Result(0, new, "", "y", {"r1": 0.6}))
        assert results.version_of(rows) == (expected, "")


def test_a_table_of_other_params_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {name: 0.5 for name in ("r1", "max_iters", "r1 precision", "r1 recall", "r1 mIoU")}
    results = Results({f"{k}": [Result(0, "abc", base, "d", figures)] for k, base in enumerate("aba")}, tmp_path / "x")
    monkeypatch.setattr(results, "collect", lambda rows: None)
    monkeypatch.setattr(ablation_tables, "COMPARED", {})
    groups = {title: [Row(f"{k}", "row")] for k, title in enumerate(("Steps", "Training", "Mixed"))}
    write_page(PARAMS, groups, results, tmp_path / "demo.md")
    commits = [line for line in (tmp_path / "demo.md").read_text().splitlines() if line.startswith("Commit")]
    assert ["other params" in line for line in commits] == [False, True, False]


def test_the_committed_pages_are_in_step_with_their_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("demo", "idd"):
        params = load_preset(Path(f"presets/{name}.yaml"))
        groups = tables(params, {})
        results = Results.load(RESULTS.with_stem(name))
        monkeypatch.setattr(results, "collect", lambda rows: None)
        monkeypatch.setattr(results, "save", lambda: None)
        write_page(params, groups, results, tmp_path / f"{name}.md")
        assert (tmp_path / f"{name}.md").read_text() == RESULTS.with_name(f"{name}.md").read_text()


def test_damaged_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RESULTS.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"row": [{"figure": 1}]}'):
        RESULTS.write_text(text)
        with pytest.raises(SesamError, match=r"demo\.json cannot be read"):
            Results.load()


def test_lost_workers_of_the_queue_are_started_again(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A worker ends without a word while experiments wait; one that dies with its experiment leaves it running."""
    states = [
        ("Queued", "Queued", "Queued", 0),
        ("Running", "Queued", "Queued", 1),
        ("Success", "Queued", "Queued", 0),  # its worker has ended
        ("Success", "Failed", "Running", 1),
        ("Success", "Failed", "Running", 0),  # killed with its worker
    ]
    shown, started = iter([*states, states[-1]]), []

    def status(*command: str) -> str:
        *of, active = next(shown)
        lines = [f"a1b2c3{k}  row-s{k}  02:30 AM  {state}" for k, state in enumerate(of)]
        return "\n".join(["Task Name Created Status", *lines, "", f"Worker status: {active} active, 0 idle"])

    monkeypatch.setattr(ablations, "dvc", status)
    monkeypatch.setattr(ablations.subprocess, "run", lambda command, **_: started.append(command))
    monkeypatch.setattr(ablations.time, "sleep", lambda seconds: None)
    ablations.run_queue({"row-s0", "row-s1", "row-s2"}, 2, {})
    assert started == [("dvc", "queue", "start", "-q", "-j", "2")] * 3
    lines = ["ablations: row-s0: Success, 1 of 3", "ablations: row-s1: Failed, 2 of 3"]
    assert capsys.readouterr().out.splitlines() == lines
