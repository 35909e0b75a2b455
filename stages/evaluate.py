"""How good a network is on the validation images.

python -m stages.evaluate NAME: teacher, the network of the weak labels alone, or a round's student.

Of `evaluation.panels` images of each split the predictions are kept, for panels and report: the first to validate on,
and the training images whose labels most need a look.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.dataset import Dataset, Item, item_fine, item_image
from stages.common.device import pick_device
from stages.common.errors import SesamError, run_stage
from stages.common.files import whole_folder, write_json
from stages.common.folders import METRICS, network, training_log
from stages.common.images import write_gray, write_label
from stages.common.parallel import progress
from stages.common.params import load_params
from stages.common.ranking import worst
from stages.common.scores import class_iou, confusion, network_scores, rounded

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # see `predict` in stages/segmentation/network.py


def judge(data: Dataset, predict: Predict, shown: Mapping[str, Sequence[Item]], folder: Path, title: str) -> np.ndarray:
    """Confusion matrix, (K, K + 1) int64, of a network over the validation images.

    shown: images of each split whose predicted classes go to folder/SPLIT/ID.png; of training images the confidence
    goes to folder/confidence/ID.png, 0 to 255.
    """
    total = np.zeros((len(data.classes), len(data.classes) + 1), np.int64)
    work = [("val", item) for item in data.val] + [("train", item) for item in shown["train"]]
    with progress(len(work), title) as bar:
        for split, item in work:
            predicted, confidence = predict(item_image(item))
            if split == "val":
                total += confusion(item_fine("val", item), predicted, len(data.classes))
            if item in shown[split]:
                write_label(folder / split / f"{item.id}.png", predicted, data.palette)
                if split == "train":
                    write_gray(folder / "confidence" / f"{item.id}.png", confidence)
            bar.update()
    return total


def report(matrix: np.ndarray, classes: Sequence[str], loss: list[list[float]]) -> dict[str, Any]:
    """A network's scores, IoU of each class, confusion matrix, and loss over steps, ready for JSON."""
    by_class = dict(zip(classes, rounded(class_iou(matrix)), strict=True))
    return network_scores(matrix) | {"classes": by_class, "confusion": matrix.tolist(), "loss": loss}


def loss_curve(log: Path) -> list[list[float]]:
    """[step, loss] as DVCLive logged them; nothing for a training shorter than a log step. SesamError if damaged."""
    path = log / "plots/metrics/loss.tsv"
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [[int(row["step"]), round(float(row["loss"]), 5)] for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise SesamError(f"{path} is no log of a training's loss. Train the network again.") from None


def main() -> None:
    from stages.segmentation import network as networks

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="teacher, or a key of `rounds` in params.yaml")
    name = parser.parse_args().name
    params, data = load_params(), Dataset.load()
    if name not in ("teacher", *params.rounds):
        raise SesamError(f"params.yaml: rounds has no entry {name!r}; it has {', '.join(params.rounds)}.")
    device = pick_device(params.runtime)
    model = networks.load_network(network(name), device)
    few = params.evaluation.panels
    shown = {"val": data.val[:few], "train": [] if name == "teacher" else worst(name, data, few)}
    with whole_folder(METRICS / "predictions" / name) as folder:
        matrix = judge(data, partial(networks.predict, model, device=device), shown, folder, f"evaluate {name}")
    scores = report(matrix, data.classes, loss_curve(training_log(name)))
    write_json(METRICS / "networks" / f"{name}.json", scores)
    print(f"evaluate {name}: validation mIoU {scores['mIoU']}")


if __name__ == "__main__":
    run_stage(main)
