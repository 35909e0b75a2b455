"""Scores worked by hand, properties of every score, and the stages that evaluate, on a data set with known answers."""

import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, edit_params
from dvc_render.vega_templates import TEMPLATES
from golden_run import FINE, PALETTE, PHOTO, SHAPE, evaluate_everything, make_workspace
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sesam.artifacts.atomic_io import read_json, write_json
from sesam.artifacts.component_records import Outcome, Selected
from sesam.artifacts.image_io import read_label, write_label
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.supervision import save_supervision
from sesam.errors import SesamError
from sesam.geometry.rle import mask_to_rle
from sesam.params import AnnotationMinutes, Params
from sesam.reporting import tables
from sesam.reporting.label_quality import (
    contested_pixels,
    evaluate_all,
    label_metrics,
    rank_correlation,
    ranking_csv,
    review_priority,
)
from sesam.reporting.layout import fit_to_tile, overlay_masks
from sesam.reporting.trace import explain_pixel, list_components, load_trace
from sesam.scores import class_iou, class_scores, confusion_matrix, label_scores, network_scores
from sesam.segmentation.evaluation import loss_curve
from stages import evaluate_labels, panels

K = 4
labels = arrays(np.uint8, (4, 5), elements=st.sampled_from([*range(K), 255]))


def row(*values: int) -> np.ndarray:
    return np.array([values], np.uint8)


ACTUAL = row(0, 0, 0, 0, 1, 1, 2, 2, 255, 255)
GIVEN = row(0, 0, 1, 255, 1, 1, 0, 255, 0, 255)


def test_many_classes_do_not_overflow_a_byte() -> None:
    matrix = confusion_matrix(row(200, 253), row(253, 200), 254)
    assert matrix.sum() == 2 and matrix[200, 253] == 1 and matrix[253, 200] == 1


def test_scores_by_hand() -> None:
    matrix = confusion_matrix(ACTUAL, GIVEN, K)  # without the pixels that have no fine label
    assert matrix.tolist() == [[2, 1, 0, 0, 1], [0, 2, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    assert class_iou(matrix)[:3].tolist() == [2 / 5, 2 / 3, 0]
    assert np.isnan(class_iou(matrix)[3])  # occurs nowhere
    assert network_scores(matrix) == {"mIoU": 0.3556, "pixel_accuracy": 0.5}
    assert label_scores(matrix) == {"precision": 0.6667, "recall": 0.5, "f1": 0.5714, "labeled": 0.75, "mIoU": 0.3556}
    first, second, third, never = class_scores(matrix)
    assert first == {"precision": 0.6667, "recall": 0.5, "IoU": 0.4, "unlabeled": 0.25}
    assert second == {"precision": 0.6667, "recall": 1.0, "IoU": 0.6667, "unlabeled": 0.0}
    assert third == {"precision": None, "recall": 0.0, "IoU": 0.0, "unlabeled": 0.5}
    assert set(never.values()) == {None}
    assert network_scores(confusion_matrix(row(0, 0), row(0, 3), K))["mIoU"] == 0.25  # a class only predicted has IoU 0
    nothing_labeled = label_scores(confusion_matrix(row(0, 1), row(255, 255), K))
    assert nothing_labeled == {"precision": None, "recall": 0, "f1": 0, "labeled": 0, "mIoU": 0}
    assert label_scores(confusion_matrix(row(255), row(0), K))["mIoU"] is None


def test_contested_pixels_are_those_of_two_classes() -> None:
    def kept(k: int, *columns: int, outcome: Outcome = Outcome.KEPT) -> Selected:
        mask = np.ones((2, 6), bool) & np.isin(np.arange(6), columns)
        return Selected(1, k, None, None, mask_to_rle(mask), outcome)

    masks = [kept(0, 0, 1, 2), kept(1, 2, 3), kept(0, 1), kept(1, 0, outcome=Outcome.LOW_COVERAGE), kept(0, 3)]
    assert contested_pixels(masks, (2, 6))[0].tolist() == [False, False, True, True, False, False]


def test_review_priority_by_hand() -> None:
    """Unlabeled; contradicted; contested; both; an annotator's, whatever the others say; agreed; nothing predicted."""
    merged, weak = row(255, 0, 1, 2, 1, 0, 0), row(255, 255, 255, 255, 1, 255, 255)
    predicted, contested = row(0, 1, 1, 0, 0, 0, 255), row(0, 0, 1, 1, 1, 0, 0) > 0
    outcomes = (Outcome.KEPT, Outcome.LOW_COVERAGE, Outcome.OVERSIZED)
    selected = [Selected(1, 0, None, None, "0H", outcome) for outcome in outcomes]
    priority = review_priority(merged, weak, predicted, contested, selected)
    ratios = {
        "review_priority": 0.57143,
        "unlabeled": 0.14286,
        "contradicted": 0.28571,
        "contested": 0.28571,
    }  # 4, 1, 2, 2 of 7
    assert priority == {**ratios, "components": 3, "rejected": 2}
    rows = [
        {"id": k, **priority, "review_priority": score}
        for k, score in (("b", 0.5), ("c", 0.1), ("a", 0.5), ('"d",', 0.9))
    ]
    lines = ranking_csv(rows).splitlines()
    assert lines[0] == "id,review_priority,unlabeled,contradicted,contested,components,rejected"
    assert [line.split(",0.")[0] for line in lines[1:]] == ['"""d"","', "a", "b", "c"]


@given(actual=labels, given_labels=labels)
def test_perfect_labels_score_1_and_recall_is_precision_times_coverage(actual, given_labels) -> None:
    scores = label_scores(confusion_matrix(actual, given_labels, K))
    perfect = label_scores(confusion_matrix(actual, actual, K))
    assert set(perfect.values()) == ({1.0} if (actual != 255).any() else {None})
    if scores["precision"] is not None:
        assert scores["recall"] == pytest.approx(scores["precision"] * scores["labeled"], abs=2e-4)
        if scores["recall"]:
            harmonic = 2 / (1 / scores["precision"] + 1 / scores["recall"])
            assert scores["f1"] == pytest.approx(harmonic, abs=2e-3)
    assert all(value is None or 0 <= value <= 1 for value in scores.values())


@given(pairs=st.lists(st.tuples(labels, labels), min_size=1, max_size=4))
def test_matrices_add_up_over_images(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    whole = confusion_matrix(*(np.concatenate(side) for side in zip(*pairs, strict=True)), K)
    assert (whole == sum(confusion_matrix(*pair, K) for pair in pairs)).all()


def test_annotation_hours() -> None:
    minutes = AnnotationMinutes(fine=90, coarse=7, scribble=2.2, point=1)
    hours = tables.annotation_hours
    assert hours({"scribble": 60}, minutes) == (2.2, 0.0244)
    assert hours({"fine": 1, "scribble": 60, "point": 30, "none": 9}, minutes) == (4.2, 0.028)
    assert hours({"scribble": 60}, minutes.model_copy(update={"fine": 0})) == (2.2, None)
    assert hours({"coarse": 60, "none": 1}, minutes.model_copy(update={"coarse": None})) == (None, None)


# The whole stage: the left half is class 0, the right half class 1, the top row ignored


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Params]:
    monkeypatch.chdir(tmp_path)
    return make_workspace()


def test_rank_correlation() -> None:
    assert rank_correlation([0.1, 0.2, 0.9], [0.0, 0.3, 0.4]) == 1
    assert rank_correlation([0.1, 0.9, 0.2, 0.5], [0.3, 0.0, 0.2, None]) == -1
    assert rank_correlation([0.1, 0.2], [0.1, 0.2]) is rank_correlation([0.1] * 3, [0.1, 0.2, 0.3]) is None


def test_stages_on_known_answers(
    workspace: tuple[Manifest, Params], monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    _, params = workspace
    evaluate_everything(params, monkeypatch)
    printed = "summarize: val_mIoU_baseline 0.5833, val_mIoU_r1 0.8452, val_mIoU_r2 1.0, label_precision 1.0"
    assert printed in capsys.readouterr().out

    baseline, student = (read_json(Path(f"metrics/networks/{name}.json")) for name in ("baseline", "r2"))
    assert student["mIoU"] == student["pixel_accuracy"] == 1.0
    assert student["class_iou"] == {"left": 1.0, "right, far": 1.0, "nowhere": None, "never": None}
    assert baseline["mIoU"] == round((3 / 6 + 6 / 9) / 2, 4) and baseline["pixel_accuracy"] == 0.75

    r1, r2 = (read_json(Path(f"metrics/labels/{name}.json")) for name in ("r1", "r2"))
    weak, predictions, sam = (r1["scores"][label_set] for label_set in ("weak", "confident", "sam"))
    assert weak["precision"] == 1 and weak["labeled"] == round(2 / 84, 4)
    # 3 of the 4 confident columns
    assert predictions["precision"] == 0.75 and predictions["labeled"] == round(4 / 12, 4)
    assert sam["labeled"] == round((4 * 7 - 1) / 84, 4)  # one pixel is a weak label
    assert r2["scores"]["pseudo_labels"]["precision"] == 1
    left, right = (r1["class_scores"]["pseudo_labels"][name] for name in ("left", "right, far"))
    assert left == {"precision": 1.0, "recall": 0.5, "IoU": 0.5, "unlabeled": round(2 / 6, 4)}
    assert right["precision"] == round(4 / 5, 4) and right["unlabeled"] == round(2 / 6, 4)
    assert r1["component_outcomes"]["left"] == {"kept": 4, "low_coverage": 4, "oversized": 0}
    assert r1["component_outcomes"]["right, far"] == {"kept": 4, "low_coverage": 0, "oversized": 0}
    assert r1["contested_pixels"] == {"correct": 4 * 13, "wrong": 0, "weak": 4, "unknown": 4 * 2}

    summary = read_json(Path("metrics/summary.json"))
    assert summary == {
        **{"val_mIoU_baseline": 0.5833, "val_mIoU_r1": 0.8452, "val_mIoU_r2": 1.0},
        **{"label_precision": 1.0, "label_recall": 0.6667, "label_mIoU": 0.6667},
    }
    columns = ["metrics/summary.json", *(max(key, str(score), key=len) for key, score in summary.items())]
    assert len("    ".join(columns)) <= 120  # as `dvc metrics show` prints them
    text = Path("metrics/results.txt").read_text()
    assert "halves: 4 training images with scribble labels: 0.147 hours of annotation, 2.44 % of fine masks'" in text
    assert re.search(r"baseline +0\.583 .*\n.*student of r1 +0\.845 .*\n.*student of r2 +1\.000 ", text)
    assert not any("NaN" in path.read_text() for path in Path("metrics").rglob("*.json"))

    def plotted(path: str) -> list[str]:
        return Path(f"metrics/plots/{path}.csv").read_text().splitlines()

    assert plotted("training/baseline") == ["step,loss", "10,0.5"]
    assert plotted("iou/student_r2") == ["class,IoU", "left,1.0", '"right, far",1.0']
    assert plotted("components/r1")[:3] == ["outcome,components", "kept,8", "low_coverage,4"]
    assert plotted("labels/precision")[:2] == ["labels,share", "weak,1.0"]
    percents = Counter(plotted("confusion/baseline"))  # a row per percent
    assert percents["left,left"] == 50 and percents['left,"right, far"'] == 50

    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    assert plots.pop(0) == "metrics/panels"  # pictures
    listed = {folder: properties for plot in plots for folder, properties in plot.items()}
    assert set(map(Path, listed)) == set(Path("metrics/plots").iterdir())
    for folder, properties in listed.items():
        for path in Path(folder).iterdir():
            assert {properties["x"], properties["y"]} == set(path.read_text().splitlines()[0].split(","))
        assert properties["template"] in {template.DEFAULT_NAME for template in TEMPLATES}


def test_percents_of_a_class_add_up_to_100() -> None:
    ratios = np.array([[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0], [0.001, 0.998, 0, 0.001]])
    counts = {("a", "a"): 33, ("a", "b"): 34, ("a", "c"): 33, ("c", "b"): 100}
    assert Counter(tables.percent_rows(ratios, "abcd")) == counts


def test_contested_pixels_are_counted_by_outcome(workspace: tuple[Manifest, Params]) -> None:
    manifest, params = workspace
    fine = FINE.copy()
    fine[1:, 10:] = 2
    write_label(Path("data/fine/train/3.png"), fine, PALETTE)
    contested = evaluate_all(manifest, params, "r1").contested
    # two columns, seven rows with a fine label and one without
    assert contested == {"correct": 3 * 13, "wrong": 13, "weak": 4, "unknown": 4 * 2}


def test_training_images_without_fine_labels(workspace: tuple[Manifest, Params], monkeypatch) -> None:
    manifest, params = workspace
    shutil.rmtree("data/fine/train")
    without = replace(manifest, train=tuple(replace(record, has_fine_label=False) for record in manifest.train))
    without.save()
    evaluate_everything(params, monkeypatch)
    metrics = read_json(Path("metrics/labels/r2.json"))
    assert (
        metrics["scores"]["pseudo_labels"]["precision"] is None and metrics["component_outcomes"]["left"]["kept"] == 4
    )
    assert metrics["contested_pixels"] == {"correct": 0, "wrong": 0, "weak": 4, "unknown": 4 * 15}
    assert read_json(Path("metrics/networks/r2.json"))["mIoU"] == 1.0


def test_panels(workspace: tuple[Manifest, Params], monkeypatch) -> None:
    _, params = workspace
    evaluate_everything(params, monkeypatch)
    for name in params.rounds:
        folder = Path("metrics/panels", name)
        pictures = {str(path.relative_to(folder)): path for path in folder.rglob("*.png")}
        assert set(pictures) == {"train/2.png", "train/3.png", "train/town/0.png", "val/town/0.png", "val/1.png"}
        with Image.open(pictures["train/town/0.png"]) as train, Image.open(pictures["val/1.png"]) as val:
            assert train.width == 5 * (12 * 42 + 12) + 12 and val.width == 4 * (12 * 42 + 12) + 12
            assert train.height > 2 * 8 * 42 > val.height > 8 * 42
            assert set(PALETTE[:2]) <= {color for _, color in val.getcolors(1 << 24)}
    edit_params(Path(), report__num_images=1)  # evaluates nothing again
    monkeypatch.setattr(sys, "argv", ["panels", "r1"])
    panels.main()
    assert [path.name for path in sorted(Path("metrics/panels/r1").rglob("*.png"))] == ["2.png", "0.png"]


@pytest.mark.parametrize(
    ("file", "number", "change"),
    [
        ("selected", 1, {"candidate": 99}),
        ("selected", 1, {"candidate": None, "score": None, "outcome": "oversized"}),  # it fits
        ("selected", 3, {"candidate": 0, "score": 0.9, "outcome": "kept"}),  # it does not fit
        (
            "masks",
            1,
            {"candidates": [{"predicted_iou": iou, "rle": "P2P1"} for iou in (0.9, 0.91)]},
        ),  # another is preferred
    ],
)
def test_masks_selected_by_other_params_are_refused(workspace, file: str, number: int, change: dict) -> None:
    manifest, params = workspace
    trace = load_trace(manifest.train[0], "r1", manifest, params)
    assert [component.selected.candidate_index for component in trace.components] == [0, 0, None]
    path = Path(f"data/rounds/r1/{file}/town/0.json")
    document = read_json(path)
    document["components"][number - 1] |= change
    write_json(path, document)
    with pytest.raises(SesamError, match=rf"town/0\.json: the mask of component {number} was selected by other params"):
        load_trace(manifest.train[0], "r1", manifest, params)


def test_each_pixel_is_explained(workspace: tuple[Manifest, Params]) -> None:
    manifest, params = workspace
    trace = load_trace(manifest.train[0], "r2", manifest, params)
    texts = {xy: "\n".join(explain_pixel(trace, *xy)) for xy in ((1, 4), (9, 2), (11, 2), (1, 1), (5, 5))}
    assert "left, from weak label.\nAn annotator" in texts[1, 4] and "weak: left" in texts[1, 4]
    assert "component 1 (right, far) holds it: score 0.90: predicted IoU 0.90, covers 100%" in texts[9, 2]
    assert (
        "component 1 (right, far) holds it" in texts[11, 2]
        and "is 0.487; other masks that hold it: 2 (left) 0.063" in texts[11, 2]
    )
    assert "left, from confident prediction." in texts[1, 1] and "teacher: left, confidence 1.00" in texts[1, 1]
    assert "no class, from none." in texts[5, 5] and "fine: left" in texts[5, 5]
    lines = list_components(trace)
    assert len(lines) == 6 and lines[4] == "3 left, 1 pixels, prompted with mask: no mask kept (low_coverage)"


def test_loss_curve(tmp_path: Path) -> None:
    assert loss_curve(tmp_path) == []  # a training shorter than a log step
    log = tmp_path / "plots/metrics/loss.tsv"
    log.parent.mkdir(parents=True)
    log.write_text("step\tloss\n10\t1.25\n20\t0.5\n")
    assert loss_curve(tmp_path) == [[10, 1.25], [20, 0.5]]
    for damaged in (b"step\tother\n1\t2\n", b"step\tloss\n1\tx\n", b"step\tloss\n1\n", b"\xff\xfe\0"):
        log.write_bytes(damaged)
        with pytest.raises(SesamError, match=r"loss\.tsv is not a log"):
            loss_curve(tmp_path)


@pytest.mark.long
def test_workers_change_nothing(workspace: tuple[Manifest, Params]) -> None:
    manifest, params = workspace
    two_workers = params.model_copy(update={"runtime": params.runtime.model_copy(update={"num_workers": 2})})
    alone, together = (evaluate_all(manifest, changed, "r1") for changed in (params, two_workers))
    assert label_metrics(alone, manifest.classes) == label_metrics(together, manifest.classes)
    assert alone.ranking == together.ranking


def test_images_are_counted_and_each_damaged_file_is_reported(workspace: tuple[Manifest, Params], capsys) -> None:
    manifest, params = workspace
    many = replace(manifest, train=manifest.train[2:] * 150)
    save_supervision(dict.fromkeys(("2", "3"), "scribble"))
    evaluate_all(many, params, "r1")
    assert "evaluate_labels r1: 300 images" in capsys.readouterr().out
    for record in many.train[:2]:
        Path(f"data/weak/{record.id}.png").unlink()
    with pytest.raises(SesamError, match="300 images failed"):
        evaluate_all(many, params, "r1")


@pytest.mark.parametrize("path", ["data/weak/2.png", "data/pseudo_labels/r2/sources/3.png", "data/fine/val/1.png"])
def test_missing_or_small_file_is_reported_and_nothing_is_written(workspace, monkeypatch, path: str) -> None:
    Path(path).unlink()
    with pytest.raises(SesamError, match=f"{path} is missing"):
        evaluate_everything(workspace[1], monkeypatch)
    write_label(Path(path), FINE[:4], PALETTE)
    with pytest.raises(SesamError, match=f"{path} is 12x4 pixels, its image 12x8"):
        evaluate_everything(workspace[1], monkeypatch)
    assert not list(Path().glob("metrics/*.json"))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 12), (336, 504)), ((256, 256), (512, 512)), ((1024, 2048), (256, 512)), ((2000, 3), (512, 1))],
)
def test_tiles_are_bounded(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert fit_to_tile(np.zeros((*shape, 3), np.uint8)).shape == (*size, 3)


def test_small_masks_are_drawn_over_large_ones() -> None:
    large, small = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    small[3:6, 3:9] = True
    components = [Selected(k, k, 1, 0.8, mask_to_rle(mask), Outcome.KEPT) for k, mask in ((0, small), (1, large))]
    picture = overlay_masks(PHOTO, components, PALETTE)
    red, green = picture[4 * 42 + 21, 6 * 42], picture[21, 21]
    assert red.argmax() == 0 and green.argmax() == 1


def test_weak_labels_of_other_classes_are_told(workspace: tuple[Manifest, Params], monkeypatch, capsys) -> None:
    """As where one counts classes from 1 and the other from 0."""
    manifest, _ = workspace
    for record in manifest.train:
        path = Path(f"data/weak/{record.id}.png")
        weak = read_label(path)
        write_label(path, np.where(weak == 255, 255, 1 - weak.clip(0, 1)).astype(np.uint8), PALETTE)
    monkeypatch.setattr(sys, "argv", ["evaluate_labels", "r1"])
    evaluate_labels.main()
    assert "warning: only 0% of the weak labels' pixels have the class of the fine labels" in capsys.readouterr().err
