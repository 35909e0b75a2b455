"""The scores of a run as numbers: for `dvc metrics show`, for plots and charts, and as a table for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sesam.artifacts.atomic_io import csv_text, write_text
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.metrics_schema import MetricsByName, describe_images
from sesam.params import AnnotationMinutes, Params
from sesam.scores import ratio

Value = TypeVar("Value")


class Table(NamedTuple):
    """What a plot or a chart shows. series: by name, the y of each x, None where there is no score."""

    x: str
    y: str
    series: Mapping[str, Mapping[Any, float | None]]


def annotation_hours(images: Mapping[str, int], minutes: AnnotationMinutes) -> tuple[float | None, float | None]:
    """Hours to annotate so many images of each kind, and their ratio to fine masks of all; None if unknown."""
    each = {kind: 0.0 if kind == "none" else getattr(minutes, kind) for kind, count in images.items() if count}
    if None in each.values():
        return None, None
    total = sum(images[kind] * each[kind] for kind in each)
    return round(total / 60, 4), None if minutes.fine is None else ratio(total, sum(images.values()) * minutes.fine)


def summary(networks: MetricsByName, labels: MetricsByName) -> dict[str, float | None]:
    """A row of `dvc metrics show`, six keys within 120 columns.

    Validation mIoU of the network trained on the weak labels and of the last two rounds' students; precision, recall
    and mIoU of the last round's pseudo-labels against the fine labels of training images.
    """
    scores = labels[list(labels)[-1]]["scores"]["pseudo_labels"]
    return {
        "val_mIoU_baseline": networks["baseline"]["mIoU"],
        **{f"val_mIoU_{name}": networks[name]["mIoU"] for name in list(labels)[-2:]},
        **{f"label_{measure}": scores[measure] for measure in ("precision", "recall", "mIoU")},
    }


def network_title(network: str) -> str:
    return network if network == "baseline" else f"student {network}"


def missing_title(classes: Sequence[str]) -> str:
    """What the pixels without a label are called beside these classes."""
    title = "unlabeled"
    while title in classes:
        title = f"({title})"
    return title


def transpose(rows: Mapping[str, Mapping[str, Value]]) -> dict[str, dict[str, Value]]:
    """A table's rows by name as its columns by name."""
    columns = next(iter(rows.values()))
    return {column: {name: row[column] for name, row in rows.items()} for column in columns}


def tables(networks: MetricsByName, labels: MetricsByName) -> dict[str, Table]:
    """The tables of a run, by name.

    training: each network's loss. iou: each network's IoU by class. labels: precision and recall of each label set.
    label_classes: those of each round's pseudo-labels, by class. components, contested: each round's components and
    contested pixels, by outcome.
    """
    measures = ("precision", "recall")
    label_sets, of_classes, components = {}, {}, {}
    for name, metrics in labels.items():
        for label_set, scores in metrics["scores"].items():
            label_sets["weak" if label_set == "weak" else f"{name} {label_set}"] = scores
        by_measure = transpose(metrics["class_scores"]["pseudo_labels"])
        for measure in measures:
            of_classes[f"{name} {measure}"] = by_measure[measure]
        by_outcome = transpose(metrics["component_outcomes"])
        components[name] = {outcome: sum(counts.values()) for outcome, counts in by_outcome.items()}
    columns = transpose(label_sets)
    return {
        "training": Table("step", "loss", {network_title(name): dict(m["loss"]) for name, m in networks.items()}),
        "iou": Table("class", "IoU", {network_title(name): m["class_iou"] for name, m in networks.items()}),
        "labels": Table("labels", "share", {measure: columns[measure] for measure in measures}),
        "label_classes": Table("class", "share", of_classes),
        "components": Table("outcome", "components", components),
        "contested": Table("outcome", "pixels", {name: m["contested_pixels"] for name, m in labels.items()}),
    }


def confusion_ratios(networks: MetricsByName, labels: MetricsByName) -> dict[str, np.ndarray]:
    """Of each network, and of each round's SAM pixels and pseudo-labels: (K, K + 1), relative to each actual class.

    The last column is unlabeled. A row of zeros is a class without pixels.
    """
    counts = {network_title(name): np.array(metrics["confusion_matrix"]) for name, metrics in networks.items()}
    for name, metrics in labels.items():
        counts |= {
            f"{name} {label_set}": np.array(metrics["confusion_matrix"][label_set])
            for label_set in ("sam", "pseudo_labels")
        }
    return {title: matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) for title, matrix in counts.items()}


def write_plots(folder: Path, networks: MetricsByName, labels: MetricsByName, classes: Sequence[str]) -> None:
    """The data of `dvc plots show`: TABLE/SERIES.csv, and confusion/NETWORK.csv for DVC's confusion template."""
    files: dict[str, tuple[tuple[str, str], Sequence[tuple[Any, Any]]]] = {
        f"{name}/{series}": ((table.x, table.y), [(x, y) for x, y in values.items() if y is not None])
        for name, table in tables(networks, labels).items()
        for series, values in table.series.items()
    }
    for title, ratios in confusion_ratios(networks, labels).items():
        files[f"confusion/{title}"] = ("actual", "predicted"), percent_rows(ratios, (*classes, missing_title(classes)))
    for name, (header, rows) in files.items():
        if rows:  # DVC fails on a file without any
            write_text(folder / f"{name.replace(' ', '_')}.csv", csv_text(header, rows))


def percent_rows(ratios: np.ndarray, names: Sequence[str]) -> list[tuple[str, str]]:
    """A row (actual, predicted) per percent of an actual class's pixels: DVC's template counts rows.

    ratios: (K, K + 1), see `confusion_ratios`.
    """
    percents = np.diff(np.rint(100 * ratios.cumsum(axis=1)).astype(int), axis=1, prepend=0)  # each row sums to 100
    cells = np.repeat(np.argwhere(percents), percents[percents != 0], axis=0)
    return [(names[actual], names[predicted]) for actual, predicted in cells]


def results_text(manifest: Manifest, params: Params, networks: MetricsByName, labels: MetricsByName) -> str:
    """The end of `make demo`: a line per network and per score of the last round's labels, with what each is."""

    def line(title: str, score: float | None, meaning: str) -> str:
        return f"  {title:<24}{'–' if score is None else f'{score:.3f}':>7}   {meaning}"

    last = list(labels)[-1]
    scores, images = labels[last]["scores"]["pseudo_labels"], labels[last]["images"]
    hours, cost_ratio = annotation_hours(images, params.annotation_minutes)
    cost = "" if hours is None else f": {hours:.3g} hours of annotation"
    cost += "" if cost_ratio is None else f", {100 * cost_ratio:.3g} % of fine masks'"
    lines = [
        f"{manifest.name}: {describe_images(images)}{cost}; {len(manifest.val)} validation images",
        "",
        "Networks, mIoU on the validation images"
        + ("" if manifest.val else ": none, because dataset.val_splits is []"),
        line("baseline", networks["baseline"]["mIoU"], "trained on the annotators' labels alone, without SAM"),
        *(line(f"student of {name}", networks[name]["mIoU"], f"trained on pseudo-labels of {name}") for name in labels),
        "",
        f"Pseudo-labels of {last}, against the fine labels of the training images",
        line("precision", scores["precision"], "of the labeled pixels have the right class"),
        line("recall", scores["recall"], "of all pixels have the right class"),
        line("mIoU", scores["mIoU"], "an unlabeled pixel counts as a miss"),
        "",
        "Next: metrics/report.html in a browser   all scores, charts and layers of the images",
        f"      metrics/panels/{last}/               a page per image: every step of the method",
        f"      data/pseudo_labels/{last}/           the labels as PNGs, with a README.md",
    ]
    return "\n".join(lines) + "\n"
