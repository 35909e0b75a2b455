"""How good the networks are on validation images, and the tables and pictures of a run.

Label sets are judged before, by evaluate_labels; this stage brings its figures and the networks' together.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.common.dataset import Dataset, Item, item_fine, item_label, item_predictions
from stages.common.errors import run_stage
from stages.common.files import read_json, whole_folder, write_json, write_text
from stages.common.images import read_image
from stages.common.labels import UNLABELLED, confident_labels
from stages.common.parallel import progress
from stages.common.params import NO_TEACHER, Minutes, Params, load_params
from stages.common.scores import class_iou, confusion, mean_iou, network_scores, share
from stages.pictures.panels import Steps, train_panel, val_panel

METRICS = Path("metrics")

Network = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 RGB to (H, W) uint8 class ids


def annotation_hours(images: int, kind: str, minutes: Minutes) -> dict[str, float | None]:
    """Hours to annotate `images` images with labels of `kind` and with fine ones, and their share; None if unknown."""
    weak, fine = getattr(minutes, kind), minutes.fine
    hours = {
        name: None if each is None else round(images * each / 60, 4) for name, each in (("weak", weak), ("fine", fine))
    }
    known = weak is not None and fine is not None
    return {"weak_hours": hours["weak"], "fine_hours": hours["fine"], "share": share(weak, fine) if known else None}


# Networks


def judge_networks(data: Dataset, params: Params, networks: Mapping[str, Network]) -> dict[str, np.ndarray]:
    """Confusion matrix, (K, K + 1) int64, of each network over the validation images.

    networks: "teacher", and each round's student by the round's name. Draws metrics/panels as well, for the
    first images of each split.
    """
    shown = params.evaluation.panels
    total: dict[str, np.ndarray] = {}
    with (
        progress(len(data.val) + len(data.train[:shown]), "evaluate networks") as bar,
        whole_folder(METRICS / "panels") as folder,
    ):
        for number, item in enumerate(data.val):
            image, fine = read_image(Path(item.image)), item_fine("val", item)
            predicted = {name: network(image) for name, network in networks.items()}
            for name, labels in predicted.items():
                total[name] = total.get(name, 0) + confusion(fine, labels, len(data.classes))
            if number < shown:
                titled = {_title(name): labels for name, labels in predicted.items()}
                _save(val_panel(image, fine, titled, data), folder / "val" / f"{item.id}.png")
            bar.update()
        for item in data.train[:shown]:
            image = read_image(Path(item.image))
            fine, weak = item_fine("train", item), item_label("data/weak", item)
            steps = {name: _steps(name, item, networks[name](image), params) for name in params.rounds}
            _save(train_panel(image, fine, weak, steps, data), folder / "train" / f"{item.id}.png")
            bar.update()
    return total


def _steps(name: str, item: Item, student: np.ndarray, params: Params) -> Steps:
    predicted, confidence = item_predictions(name, item)
    confident = confident_labels(predicted, confidence, params.augment.confidence) != UNLABELLED
    selected = read_json(Path(f"data/rounds/{name}/selected/{item.id}.json"))
    merged, sources = (item_label(f"data/pseudo_labels/{name}/{part}", item) for part in ("labels", "sources"))
    teacher = None if params.rounds[name].teacher == NO_TEACHER else predicted
    return Steps(teacher, confident, selected, merged, sources, student)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _title(name: str) -> str:
    return name if name == "teacher" else f"student {name}"


# What is written


def write_metrics(
    folder: Path,
    networks: Mapping[str, np.ndarray],
    rounds: Mapping[str, Any],
    hours: Mapping[str, float | None],
    classes: Sequence[str],
) -> None:
    """summary.json, the one row of `dvc metrics show`, and evaluation.json, every network's scores with each class.

    networks: confusion matrices by name. rounds: what evaluate_labels wrote, by round.
    summary: validation mIoU of each network; precision, recall and mIoU of the last round's merged labels.
    """
    judged = {
        name: network_scores(matrix) | {"classes": dict(zip(classes, _rounded(class_iou(matrix)), strict=True))}
        for name, matrix in networks.items()
    }
    students = {name: judged[name] for name in judged if name != "teacher"}
    write_json(folder / "evaluation.json", {"teacher": judged["teacher"], "student": students, "annotation": hours})
    merged = list(rounds.values())[-1]["scores"]["merged"]
    summary = {name: scores["mIoU"] for name, scores in judged.items()}
    summary |= {f"labels_{measure}": merged[measure] for measure in ("precision", "recall", "mIoU")}
    write_json(folder / "summary.json", summary | {"hours": hours["weak_hours"]})


def write_plots(
    folder: Path, networks: Mapping[str, np.ndarray], rounds: Mapping[str, Any], classes: Sequence[str]
) -> None:
    """The tables behind `dvc plots show`; the templates in stages/pictures draw them.

    iou.csv: IoU of each class by each network. labels.csv: precision and recall of each label set.
    label_classes.csv: of each merged label and class its precision and recall. components.csv: of each round
    and class the components by what became of their masks. contested.csv: pixels claimed by two classes.
    confusion.csv: of each network, SAM's pixels and merged label, the share of each actual class given each
    class; shares that round to 0.000 are left out. `series` is what the plots tell apart by colour or by panel.
    """
    titled = {_title(name): matrix for name, matrix in networks.items()}
    sets = {f"{name} {part}": np.array(matrix) for name in rounds for part, matrix in rounds[name]["confusion"].items()}
    judged = {
        (part if part == "weak" else f"{name} {part}"): scores
        for name in rounds
        for part, scores in rounds[name]["scores"].items()
    }
    confusions = titled | {name: matrix for name, matrix in sets.items() if name.endswith((" sam", " merged"))}
    names = (*classes, "unlabelled")
    tables = {
        "iou": (
            ("class", "series", "IoU"),
            [
                (classes[k], name, value)
                for name, matrix in titled.items()
                for k, value in enumerate(_rounded(class_iou(matrix)))
                if value is not None
            ],
        ),
        "labels": (
            ("labels", "series", "share"),
            [
                (name, measure, one[measure])
                for name, one in judged.items()
                for measure in ("precision", "recall")
                if one[measure] is not None
            ],
        ),
        "label_classes": (
            ("class", "series", "share"),
            [
                (k, f"{name} {measure}", one[measure])
                for name in rounds
                for k, one in rounds[name]["classes"]["merged"].items()
                for measure in ("precision", "recall")
                if one[measure] is not None
            ],
        ),
        "components": (
            ("class", "round", "series", "components"),
            [
                (k, name, fate, count)
                for name in rounds
                for k, counts in rounds[name]["components"].items()
                for fate, count in counts.items()
            ],
        ),
        "contested": (
            ("round", "series", "pixels"),
            [(name, kind, pixels) for name in rounds for kind, pixels in rounds[name]["contested"].items()],
        ),
        "confusion": (
            ("series", "actual", "predicted", "share"),
            [(name, names[i], names[j], part) for name, matrix in confusions.items() for i, j, part in _shares(matrix)],
        ),
    }
    with whole_folder(folder / "plots") as plots:
        for name, (header, rows) in tables.items():
            _write_csv(plots / f"{name}.csv", header, rows)


def _rounded(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def _shares(matrix: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Row, column and share of its row, of the cells to plot; the diagonal first, for plots keep the first order."""
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).round(3)
    for k in range(len(shares)):
        yield k, k, float(shares[k, k])
    for i, j in np.argwhere(shares > 0):
        if i != j:
            yield int(i), int(j), float(shares[i, j])


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def evaluate(data: Dataset, params: Params, networks: Mapping[str, Network]) -> None:
    """Write metrics/. networks: "teacher", and each round's student by the round's name."""
    rounds = {name: read_json(METRICS / "labels" / f"{name}.json") for name in params.rounds}
    judged = judge_networks(data, params, networks)
    hours = annotation_hours(len(data.train), params.weak.kind, params.evaluation.minutes)
    write_metrics(METRICS, judged, rounds, hours, data.classes)
    write_plots(METRICS, judged, rounds, data.classes)
    print("evaluate: validation mIoU " + ", ".join(f"{_title(name)} {mean_iou(one)}" for name, one in judged.items()))


def main() -> None:
    # here, because every worker process imports this module and needs no torch
    from stages.common.device import pick_device
    from stages.segmentation.network import load_network, predict

    params, data = load_params(), Dataset.load()
    device = pick_device(params.runtime)
    folders = {"teacher": "models/teacher", **{name: f"models/student/{name}" for name in params.rounds}}
    loaded = {name: load_network(Path(folder), device) for name, folder in folders.items()}

    def network(name: str) -> Network:
        return lambda image: predict(loaded[name], image, device)[0]

    evaluate(data, params, {name: network(name) for name in loaded})


if __name__ == "__main__":
    run_stage(main)
