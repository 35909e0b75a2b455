"""Ids, class names and paths stay text in every format that they are written into."""

import ast
import csv
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from golden_run import copy_evaluated_run

from sesam.artifacts.atomic_io import csv_text, read_json, write_text
from sesam.artifacts.manifest import ImageRecord, Manifest, validate_record
from sesam.artifacts.ranking import top_ranked
from sesam.datasets.annotations import cvat
from sesam.datasets.annotations.common import ImageRegions
from sesam.errors import SesamError
from sesam.params import DatasetParams, Params
from sesam.reporting.card import readme
from sesam.reporting.card_data import CardData, images_csv
from sesam.reporting.charts import bars, heat_maps
from sesam.reporting.label_quality import ranking_csv
from sesam.reporting.tables import Table, missing_title

RUNS = 'x"); __import__("os").system("touch ran'
FENCE = "x\n\n```python\nimport os\n```\n"
NAMES = (FENCE, RUNS, "<script>alert(1)</script>", "a|b `c` [d](e) *f* _g_ \\| <b>", "=1+1", "unlabeled", "&lt;")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Params]:
    return copy_evaluated_run(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_text_in_the_card(workspace: tuple[Manifest, Params], name: str) -> None:
    data, params = workspace
    dataset = params.dataset.model_copy(update={"root": name, "map": {name: None}})
    metrics = read_json(Path("metrics/labels/r1.json"))
    for by_class in (metrics["class_scores"]["pseudo_labels"], metrics["component_outcomes"]):
        by_class[name] = by_class["left"]
    named = replace(data, name=name, classes=(name,) * 4)
    card = readme(CardData(named, "r1", params.model_copy(update={"dataset": dataset}), metrics, "", ""))
    assert card.count("\n```") == 2  # one program
    program = re.search("^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert program and ast.parse(program[1]) and repr(name) in program[1]
    prose = card.replace(program[0], "")
    rows = [line for line in prose.splitlines() if line.startswith("| 0 | ") and "(200, 0, 0)" in line]
    assert [unescape(row.split(" | ")[1]) for row in rows] == [name]
    assert "<script" not in prose and "<b>" not in re.sub("`[^`\n]*`", "", prose)


def test_cells_are_no_formulas(workspace: tuple[Manifest, Params]) -> None:
    data, _ = workspace
    ids = ("=1+1", "+x", "-2", "@a/b", "c")
    record = data.train[0]
    data = replace(data, train=tuple(replace(record, id=k, image=f"{k}.png") for k in ids))
    ranking = ranking_csv([dict(id=k, review_priority=0.5) for k in ids])  # as rows of evaluate_labels
    for text in (images_csv(data, "."), ranking, csv_text(("class",), [(k,) for k in ids])):
        cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))], text
    rows = list(csv.DictReader(images_csv(data, ".").splitlines()))
    assert [Path(row["id"]) for row in rows] == [Path(k) for k in ids]  # paths lead where they led
    assert [Path(row["image"]) for row in rows] == [Path(f"{k}.png") for k in ids]
    write_text(Path("data/pseudo_labels/r1/ranking.csv"), ranking)
    assert {record.id for record in top_ranked("r1", data, 5)} == set(ids)


@pytest.mark.parametrize("character", ["\x00", "\x0b", "\x1b", "\n", "\t", "\x7f", "\ud800", "\ufffe"])
def test_control_characters_are_refused_where_they_come_in(character: str) -> None:
    for text in (f"a{character}b", character):
        with pytest.raises(ValueError, match="control character"):
            DatasetParams(classes=[text, "b"])
        with pytest.raises(ValueError):
            validate_record(ImageRecord("a", f"{text}/a.png", 4, 6, "0" * 64))


def test_a_manifest_with_control_characters_or_equal_classes_is_refused(workspace: tuple[Manifest, Params]) -> None:
    data, _ = workspace
    for name in ("a\x0bb", data.classes[1]):
        replace(data, classes=(name, *data.classes[1:])).save()
        with pytest.raises(SesamError, match=r"classes\.json is damaged"):
            Manifest.load()


def test_xml_holds_any_other_name(tmp_path: Path) -> None:
    record = ImageRecord("a", "a.png", 4, 6, "0" * 64)
    cvat.write([ImageRegions(record, NAMES[2], [])], ["a"], tmp_path)
    (image,) = ElementTree.parse(tmp_path / "annotations.xml").getroot().iter("image")
    assert image.attrib["name"] == NAMES[2]


def test_classes_stay_apart_in_charts() -> None:
    classes = ["unlabeled", "1", "2020-01-01", "<b>1</b>"]
    figure = heat_maps({"r1": np.eye(4, 5)}, classes)
    columns = figure.data[0].x
    assert len(set(columns)) == 5 and [unescape(name) for name in columns[:4]] == classes
    assert not any("<" in name for name in columns)
    chart = bars(Table("class", "IoU", {"r1": dict.fromkeys(classes, 0.5)}))
    for shown in (figure, chart):
        assert shown.layout.xaxis.type == "category"  # Plotly would read numbers and dates
    assert missing_title(classes) == "(unlabeled)" and missing_title(["a"]) == "unlabeled"
