"""How good the networks and every label set are, against fine labels.

Networks are judged on validation images, label sets on training images. Pixels whose fine label is 255
count nowhere. Every score comes from confusion matrices summed over images, so memory does not grow with
their number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.common.dataset import Dataset, Item, item_fine, item_label, item_predictions
from stages.common.errors import run_stage
from stages.common.files import read_json, whole_folder, write_json, write_text
from stages.common.labels import UNLABELLED, confident_labels, read_image
from stages.common.parallel import per_image, progress
from stages.common.params import Minutes, Params, load_params
from stages.common.sources import SAM
from stages.pictures.panels import Steps, train_panel, val_panel

METRICS = Path("metrics")

Network = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 RGB to (H, W) uint8 class ids
Scores = dict[str, float | None]


def confusion(actual: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts, (K, K + 1) int64: actual class by predicted class, the last column unlabelled.

    actual, predicted: (H, W) uint8 class ids, 255 = unlabelled.
    """
    counted = actual != UNLABELLED
    rows, columns = actual[counted].astype(np.int64), np.minimum(predicted[counted], classes).astype(np.int64)
    cells = rows * (classes + 1) + columns
    return np.bincount(cells, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """TP / (TP + FP + FN) of each class, (K,) float64; an unlabelled pixel is a miss.

    matrix: (K, K + 1) pixel counts. NaN for a class that occurs neither in the fine labels nor in what is
    compared with them, as in mmsegmentation.
    """
    hits = matrix.diagonal()
    union = matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float | None:
    """Mean IoU over the classes that occur; None if none does."""
    iou = class_iou(matrix)
    return None if np.isnan(iou).all() else round(float(np.nanmean(iou)), 4)


def network_scores(matrix: np.ndarray) -> Scores:
    """mIoU, and pixel accuracy: the share of pixels given their class."""
    return {"mIoU": mean_iou(matrix), "pixel_accuracy": _share(matrix.trace(), matrix.sum())}


def label_scores(matrix: np.ndarray) -> Scores:
    """Scores of a label set that may leave pixels unlabelled.

    precision: correct / labelled, so 1 - precision is the share of its pixels given a wrong class.
    recall: correct / all. f1: their harmonic mean. coverage: labelled / all. mIoU: see `class_iou`.
    None where there is nothing to divide by.
    """
    correct, labelled, every = matrix.trace(), matrix[:, :-1].sum(), matrix.sum()
    return {
        "precision": _share(correct, labelled),
        "recall": _share(correct, every),
        "f1": _share(2 * correct, labelled + every),
        "coverage": _share(labelled, every),
        "mIoU": mean_iou(matrix),
    }


def annotation_hours(images: int, kind: str, minutes: Minutes) -> dict[str, float | None]:
    """Hours to annotate `images` images with weak labels of `kind` and with fine ones, and weak / fine."""
    weak, fine = images * getattr(minutes, kind) / 60, images * minutes.fine / 60
    return {"weak_hours": round(weak, 4), "fine_hours": round(fine, 4), "share": _share(weak, fine)}


def _share(part: float, whole: float) -> float | None:
    return round(float(part / whole), 4) if whole else None


# Label sets of training images


def label_sets(item: Item, rounds: Sequence[str], threshold: float) -> Iterator[tuple[str, np.ndarray]]:
    """The label sets of a training image by name, each (H, W) uint8 with 255 = unlabelled.

    weak; and of each round ROUND/predictions, the confident ones (threshold: γ), ROUND/sam, the pixels of
    the merged label that are SAM's, and ROUND/merged.
    """
    yield "weak", item_label("data/weak", item)
    for name in rounds:
        predicted, confident = _read_predictions(name, item, threshold)
        merged, sources = _read_merged(name, item)
        yield f"{name}/predictions", np.where(confident, predicted, np.uint8(UNLABELLED))
        yield f"{name}/sam", np.where(sources == SAM, merged, np.uint8(UNLABELLED))
        yield f"{name}/merged", merged


def compare(items: Sequence[Item], classes: int, rounds: Sequence[str], threshold: float) -> dict[str, np.ndarray]:
    """Confusion matrix, (K, K + 1) int64, of each label set with the fine labels, summed over `items`."""
    sets = ["weak", *(f"{name}/{part}" for name in rounds for part in ("predictions", "sam", "merged"))]
    total = {name: np.zeros((classes, classes + 1), np.int64) for name in sets}
    for item in items:
        if item.fine:
            fine = item_fine("train", item)
            for name, labels in label_sets(item, rounds, threshold):
                total[name] += confusion(fine, labels, classes)
    return total


def judge_labels(data: Dataset, params: Params) -> dict[str, np.ndarray]:
    """Confusion matrix, (K, K + 1) int64, of each label set over the training images."""
    # summed within a batch, so that however many images there are, at most 128 matrices of a set wait
    size = -(-len(data.train) // 128)
    batches = [data.train[start : start + size] for start in range(0, len(data.train), size)]
    work = partial(compare, classes=len(data.classes), rounds=tuple(params.rounds), threshold=params.augment.confidence)
    title = "compare labels" if size == 1 else f"compare labels, {size} images at a time"
    parts = per_image(work, batches, params.runtime.workers, title)
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def _read_predictions(name: str, item: Item, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    predicted, confidence = item_predictions(name, item)
    return predicted, confident_labels(predicted, confidence, threshold) != UNLABELLED


def _read_merged(name: str, item: Item) -> tuple[np.ndarray, np.ndarray]:
    return item_label(f"data/pseudo_labels/{name}/labels", item), item_label(f"data/pseudo_labels/{name}/sources", item)


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
    predicted, confident = _read_predictions(name, item, params.augment.confidence)
    selected = read_json(Path(f"data/rounds/{name}/selected/{item.id}.json"))
    merged, sources = _read_merged(name, item)
    return Steps(predicted, confident, selected, params.merging.order, merged, sources, student)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _title(name: str) -> str:
    return name if name == "teacher" else f"student {name}"


# What is written


def write_metrics(
    folder: Path, networks: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], hours: Mapping[str, Any]
) -> None:
    """evaluation.json and labels.json whole, and summary/, the same scores with one file a row of `dvc metrics show`.

    networks, labels: confusion matrices by name, ROUND/SET for the label sets of a round.
    """
    judged = {name: network_scores(matrix) for name, matrix in networks.items()}
    scores = {name: label_scores(matrix) for name, matrix in labels.items()}
    students = {name: judged[name] for name in judged if name != "teacher"}
    nested: dict[str, Any] = {}
    for name, values in scores.items():
        *outer, inner = name.split("/")
        (nested.setdefault(outer[0], {}) if outer else nested)[inner] = values
    write_json(folder / "evaluation.json", {"teacher": judged["teacher"], "student": students})
    write_json(folder / "labels.json", nested)
    write_json(folder / "annotation.json", hours)
    with whole_folder(folder / "summary") as summary:
        write_json(summary / "teacher.json", judged["teacher"])
        for name, values in students.items():
            write_json(summary / "student" / f"{name}.json", values)
        scores["weak"] = {**scores["weak"], "hours": hours["weak_hours"]}
        scores["fine"] = {"hours": hours["fine_hours"]}
        for name, values in scores.items():
            write_json(summary / "labels" / f"{name}.json", values)


def write_plots(
    folder: Path, networks: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], classes: Sequence[str]
) -> None:
    """The tables behind `dvc plots show`; bars.json and shares.json in stages/pictures draw them.

    iou.csv: IoU of each class by each network. labels.csv: precision and recall of each label set.
    confusion.csv: of each network and merged label, the share of each actual class given each class; shares
    that round to 0.000 are left out. `series` is what the plots tell apart by colour or by panel.
    """
    titled = {_title(name): matrix for name, matrix in networks.items()}
    merged = {name.replace("/", " "): matrix for name, matrix in labels.items() if name.endswith("/merged")}
    with whole_folder(folder / "plots") as plots:
        iou = [
            (classes[k], name, round(value, 4))
            for name, matrix in titled.items()
            for k, value in enumerate(class_iou(matrix))
            if not np.isnan(value)
        ]
        _write_csv(plots / "iou.csv", ("class", "series", "IoU"), iou)
        quality = [
            (name.replace("/", " "), measure, label_scores(matrix)[measure])
            for name, matrix in labels.items()
            for measure in ("precision", "recall")
        ]
        _write_csv(plots / "labels.csv", ("labels", "series", "share"), quality)
        names = (*classes, "unlabelled")
        shares = [
            (name, names[i], names[j], share)
            for name, matrix in (titled | merged).items()
            for i, j, share in _shares(matrix)
        ]
        _write_csv(plots / "confusion.csv", ("series", "actual", "predicted", "share"), shares)


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
    labels = judge_labels(data, params)
    judged = judge_networks(data, params, networks)
    hours = annotation_hours(len(data.train), params.weak.kind, params.evaluation.minutes)
    write_metrics(METRICS, judged, labels, hours)
    write_plots(METRICS, judged, labels, data.classes)
    validation = ", ".join(f"{_title(name)} {mean_iou(matrix)}" for name, matrix in judged.items())
    scores = {name: label_scores(labels[f"{name}/merged"]) for name in params.rounds}
    merged = ", ".join(f"{name} {values['precision']}/{values['recall']}" for name, values in scores.items())
    print(f"evaluate: validation mIoU {validation}; precision/recall of merged labels {merged}")


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
