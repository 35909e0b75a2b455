"""The data set cards, for people and for programs, and the training program that they hold."""

import ast
import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import sh
from golden_run import copy_evaluated_run

from sesam.artifacts.atomic_io import read_json, sha256
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.ranking import top_ranked
from sesam.errors import SesamError
from sesam.params import Params
from sesam.reporting.card import readme
from sesam.reporting.card_data import CardData, param_values
from sesam.reporting.croissant import croissant
from sesam.reporting.git import code_version, committed_params
from stages import card


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Params]:
    return copy_evaluated_run(tmp_path, monkeypatch)


def test_card_for_people(workspace: tuple[Manifest, Params]) -> None:
    text = Path("data/pseudo_labels/r1/README.md").read_text()
    lines = text.splitlines()
    assert lines[0] == "# Pseudo-labels of halves, round r1"
    assert "Annotators' files: 1 boxes, 2 points without a pixel, 9 shapes." in lines
    assert "| 0 | left | (200, 0, 0) | 1.000 | 0.500 | 0.500 | 0.333 | 8 | 4 | 4 | 0 |" in lines
    assert "| 3 | never | (90, 90, 90) | – | – | – | – | 0 | 0 | 0 | 0 |" in lines
    assert "Masks of two classes hold 64 pixels;" in text and "correct 52, wrong 0, weak 4, unknown 8" in text
    assert f"SAM: bundled, SHA-256 {'f' * 64}" in text and "precision 0.875" in text
    assert "| rounds.r1.teacher | `none` |" in lines and "| selection.min_coverage | `0.7` |" in lines
    # four of twelve columns, less one weak label
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| 2 | SAM")] == ["32.3% |"]


def test_card_for_programs(workspace: tuple[Manifest, Params]) -> None:
    card_json = read_json(Path("data/pseudo_labels/r1/croissant.json"))
    assert card_json["conformsTo"] == "http://mlcommons.org/croissant/1.0" and "license" not in card_json
    *folders, table = card_json["distribution"]
    assert table["sha256"] == sha256(Path("data/pseudo_labels/r1/images.csv"))
    for folder, name in zip(folders, ("labels", "sources"), strict=True):
        assert (folder["@id"], folder["includes"]) == (name, f"{name}/**/*.png")  # ids have folders
        assert len(set(Path("data/pseudo_labels/r1").glob(folder["includes"]))) == 4
    sets = {records["@id"]: records for records in card_json["recordSet"]}
    assert list(sets) == ["images", "classes", "labels_of_images", "sources_of_images"]
    assert [row["classes/name"] for row in sets["classes"]["data"]] == ["left", "right, far", "nowhere", "never"]
    properties = {entry["name"]: entry["value"] for entry in card_json["additionalProperty"]}
    assert properties["precision of pseudo-labels"] == 0.875 and properties["sampling.num_points"] == 20
    assert properties["IoU of left"] == 0.5 and properties["IoU of never"] == "None"


def test_images_csv_lists_the_image_of_each_label(workspace: tuple[Manifest, Params]) -> None:
    with Path("data/pseudo_labels/r1/images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["town/0", "town/1", "2", "3"]
    assert all(sha256(Path(row["image"])) == row["sha256"] for row in rows)


def test_pipe_in_a_class_name_does_not_break_the_table(workspace: tuple[Manifest, Params]) -> None:
    manifest, params = workspace
    metrics = read_json(Path("metrics/labels/r1.json"))
    for by_class in (metrics["class_scores"]["pseudo_labels"], metrics["component_outcomes"]):
        by_class["a|b"] = by_class.pop("left")
    renamed = replace(manifest, name="x", classes=("a|b", *manifest.classes[1:]))
    card_data = CardData(renamed, "r1", params, metrics, "", "")
    assert "| 0 | a&#124;b | (200, 0, 0) |" in readme(card_data)
    assert json.loads(json.dumps(croissant(card_data)))["name"] == "pseudo_labels_x_r1"


@pytest.mark.parametrize("text", ['"', "it's", '"""', "\\", "a\nb", "{{ labels }} {x}", "é"])
def test_training_script_holds_any_text(workspace: tuple[Manifest, Params], text: str) -> None:
    manifest, params = workspace
    params = params.model_copy(update={"dataset": params.dataset.model_copy(update={"root": f"data/{text}"})})
    metrics = read_json(Path("metrics/labels/r1.json"))
    for by_class in (metrics["class_scores"]["pseudo_labels"], metrics["component_outcomes"]):
        by_class[text] = by_class["left"]
    card_data = CardData(replace(manifest, classes=(text,) * 4), "r1", params, metrics, "", "")
    script = readme(card_data).split("```python\n")[1].split("```")[0]
    values = {
        node.targets[0].id: ast.literal_eval(node.value.args[0] if isinstance(node.value, ast.Call) else node.value)
        for node in ast.parse(script).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()
    }
    assert values["LABELS"] == "r1" and values["IMAGES"] == text and values["CLASSES"] == [text] * 4


@pytest.mark.parametrize("index", ["{}", "[]"])
def test_embeddings_of_another_run_are_refused(workspace, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    Path("data/embeddings.json").write_text(index)
    monkeypatch.setattr("sys.argv", ["card", "r1"])
    with pytest.raises(SesamError, match=r"data/embeddings\.json is not from this run"):
        card.main()


def test_code_version_and_params_of_the_last_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_version(tmp_path) == "SeSAM 0.1.0" and committed_params() == (None, {})

    def commit(file: str, text: str) -> str:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
        sh("git", "add", "-A", cwd=tmp_path)
        sh("git", "commit", "-qm", file, cwd=tmp_path)
        return sh("git", "rev-parse", "HEAD", cwd=tmp_path).strip()

    sh("git", "init", "-q", cwd=tmp_path)
    code = commit("stages/a.py", "1")
    assert committed_params() == (None, {})
    last = commit("params.yaml", "seed: 3")  # not code
    assert code_version(tmp_path) == f"SeSAM 0.1.0, commit {code}"
    assert committed_params() == (last[: len(committed_params()[0])], {"seed": 3})
    Path("stages/a.py").write_text("2")
    assert code_version(tmp_path) == f"SeSAM 0.1.0, commit {code} with uncommitted changes"
    for text in ("seed: [", "a: &a [1]\nseed: *a", "seed: 1\nseed: 2", "a: " + "[" * 5000, "# " + "x" * 300_000):
        commit("params.yaml", text)
        assert committed_params() == (None, {}), text[:20]


def test_card_lists_every_param_that_decides_the_labels(params: Params) -> None:
    values = param_values(params, "r1")
    groups = ("dataset", "weak_labels", "teacher", "components", "sampling", "sam", "selection", "rounds.r1")
    assert not [group for group in groups if not any(key.startswith(f"{group}.") for key in values)]
    assert not any(key.startswith(("student", "rounds.r2", "runtime")) for key in values)
    taught = param_values(params, "r2")  # by the student of r1
    assert {"network.backbone", "schedule.max_iters", "rounds.r1.teacher"} < taught.keys()
    assert next(key for key in taught if key.startswith("rounds")) == "rounds.r1.teacher"


@pytest.mark.parametrize(
    "damage",
    ["", "id,score\n", "score,id\n0.5\n", "id,score\n2,0.5\n", "id,score\n2,1\n3,1\n9,1\ntown/0,1\ntown/1,1\n"],
)
def test_a_ranking_of_other_images_is_refused(workspace: tuple[Manifest, Params], damage: str) -> None:
    manifest, _ = workspace
    assert [record.id for record in top_ranked("r1", manifest, 2)] == ["2", "3"]
    Path("data/pseudo_labels/r1/ranking.csv").write_text(damage)
    with pytest.raises(SesamError, match=r"ranking\.csv does not rank the 4 training images"):
        top_ranked("r1", manifest, 2)
