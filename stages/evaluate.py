"""How good a network is on the validation images.

python -m stages.evaluate NAME: teacher, the network of the weak labels alone, or a round's student.

Of `report.num_images` images of each split the predictions are kept, for panels and report: the first to validate on,
and the training images whose labels most need a look.
"""

from __future__ import annotations

import argparse
from functools import partial

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.manifest import Dataset
from sesam.artifacts.ranking import top_ranked
from sesam.errors import run_main
from sesam.params import load_params
from sesam.paths import METRICS, network_dir, training_log_dir
from sesam.segmentation.evaluation import EvaluationTask, evaluate_network, loss_curve, network_metrics, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="teacher, or a key of `rounds` in params.yaml")
    name = parser.parse_args().name
    params, data = load_params(), Dataset.load()
    params.check_round(name, "teacher")
    few, classes = params.report.num_images, data.classes
    shown = {"val": data.val[:few], "train": [] if name == "teacher" else top_ranked(name, data, few)}
    work = [("val", item) for item in data.val] + [("train", item) for item in shown["train"]]
    ids = {split: frozenset(item.id for item in items) for split, items in shown.items()}
    with atomic_directory(METRICS / "predictions" / name) as folder:
        load = partial(steps, network_dir(name), EvaluationTask(classes, data.palette, ids, folder), params.runtime)
        matrix = evaluate_network(load, work, len(classes), params.runtime, f"evaluate {name}")
    scores = network_metrics(matrix, classes, loss_curve(training_log_dir(name)))
    write_json(METRICS / "networks" / f"{name}.json", scores)
    print(f"evaluate {name}: validation mIoU {scores['mIoU']}")


if __name__ == "__main__":
    run_main(main)
