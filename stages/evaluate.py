"""Evaluate a network on the validation images.

python -m stages.evaluate NETWORK: baseline, trained on the weak labels alone, or a round's student.

Predictions are kept for panels and report: of the first validation images, and of the training images that most need
review; MAX_REPORT_IMAGES of each, so that report.num_images changes without new inference.
"""

import argparse

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.ranking import top_ranked
from sesam.errors import run_main
from sesam.params import BASELINE, MAX_REPORT_IMAGES, load_params
from sesam.paths import METRICS, network_dir, training_log_dir
from sesam.segmentation.evaluation import evaluate_network, loss_curve, network_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="baseline, or a key of `rounds` in params.yaml")
    name = parser.parse_args().network
    params, manifest = load_params(), Manifest.load()
    params.check_round(name, BASELINE)
    shown = [] if name == BASELINE else top_ranked(name, manifest, MAX_REPORT_IMAGES)
    with atomic_directory(METRICS / "report_predictions" / name) as folder:
        matrix = evaluate_network(network_dir(name), manifest, shown, folder, params, f"evaluate {name}")
    scores = network_metrics(matrix, manifest.classes, loss_curve(training_log_dir(name)), params.evaluation)
    write_json(METRICS / "networks" / f"{name}.json", scores)
    print(f"evaluate {name}: " + (f"validation mIoU {scores['mIoU']}" if manifest.val else "no validation images"))


if __name__ == "__main__":
    run_main(main)
