"""The summary of a run and the tables behind its plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sesam.artifacts.atomic_io import write_text
from sesam.params import AnnotationMinutes
from sesam.scores import ratio

Reports = Mapping[str, Mapping[str, Any]]  # by round or network what evaluate_labels or evaluate wrote


def annotation_hours(images: int, kind: str, minutes: AnnotationMinutes) -> tuple[float | None, float | None]:
    """Hours to annotate `images_csv` images with labels of `kind`, and their share of fine labels'; None if unknown."""
    weak, fine = getattr(minutes, kind), minutes.fine
    if weak is None:
        return None, None
    return round(images * weak / 60, 4), None if fine is None else ratio(weak, fine)


def summary(networks: Reports, rounds: Reports, hours: float | None, part: float | None) -> dict[str, float | None]:
    """Validation mIoU of each network; precision, recall and mIoU of the last round's merged labels; the cost."""
    merged = list(rounds.values())[-1]["scores"]["merged"]
    labels = {"precision": merged["precision"], "recall": merged["recall"], "mIoU": merged["mIoU"]}
    return {name: scores["mIoU"] for name, scores in networks.items()} | labels | {"hours": hours, "of_fine": part}


def tables(
    networks: Reports, rounds: Reports, classes: Sequence[str]
) -> dict[str, tuple[Sequence[str], list[Sequence[Any]]]]:
    """Header and rows of each table; `series` is what a plot tells apart by color or by panel.

    training: loss over steps. iou: IoU of each class by each network. labels: precision and recall of each
    label set. label_classes: the same of each merged label and class. components: of each round and class the
    components by what became of their masks. contested: pixels claimed by two classes. confusion: of each
    network, SAM's pixels and merged label the share of each actual class given each class; shares that round
    to 0.000 are left out.
    """
    sets = {
        (part if part == "weak" else f"{name} {part}"): scores
        for name, judged in rounds.items()
        for part, scores in judged["scores"].items()
    }
    matrices = {network_title(name): np.array(judged["confusion"]) for name, judged in networks.items()}
    matrices |= {
        f"{name} {part}": np.array(rounds[name]["confusion"][part]) for name in rounds for part in ("sam", "merged")
    }
    names = (*classes, "unlabeled")

    def known(value: float | None) -> bool:
        return value is not None

    return {
        "training": (
            ("step", "series", "loss"),
            [(step, network_title(name), loss) for name, judged in networks.items() for step, loss in judged["loss"]],
        ),
        "iou": (
            ("class", "series", "IoU"),
            [
                (k, network_title(name), value)
                for name, judged in networks.items()
                for k, value in judged["classes"].items()
                if known(value)
            ],
        ),
        "labels": (
            ("labels", "series", "share"),
            [
                (name, measure, scores[measure])
                for name, scores in sets.items()
                for measure in ("precision", "recall")
                if known(scores[measure])
            ],
        ),
        "label_classes": (
            ("class", "series", "share"),
            [
                (k, f"{name} {measure}", scores[measure])
                for name, judged in rounds.items()
                for k, scores in judged["classes"]["merged"].items()
                for measure in ("precision", "recall")
                if known(scores[measure])
            ],
        ),
        "components": (
            ("class", "round", "series", "components"),
            [
                (k, name, fate, count)
                for name, judged in rounds.items()
                for k, counts in judged["components"].items()
                for fate, count in counts.items()
            ],
        ),
        "contested": (
            ("round", "series", "pixels"),
            [(name, kind, pixels) for name, judged in rounds.items() for kind, pixels in judged["contested"].items()],
        ),
        "confusion": (
            ("series", "actual", "predicted", "share"),
            [
                (name, names[i], names[j], part)
                for name, matrix in matrices.items()
                for i, j, part in row_shares(matrix)
            ],
        ),
    }


def network_title(network: str) -> str:
    return network if network == "teacher" else f"student {network}"


def row_shares(matrix: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Row, column and share of its row, of the cells to plot; the diagonal first, for plots keep the first order."""
    parts = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)).round(3)
    for k in range(len(parts)):
        yield k, k, float(parts[k, k])
    for i, j in np.argwhere(parts > 0):
        if i != j:
            yield int(i), int(j), float(parts[i, j])


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def remove_stale(folder: Path, names: Container[str]) -> None:
    """Remove from a folder the files of rounds that are no more: DVC would count them as a part of it."""
    for path in folder.glob("*.json"):
        if path.stem not in names:
            path.unlink()
