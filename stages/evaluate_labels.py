"""Score the labels of each step of a round against fine labels, and rank its images for review.

Scores are of the training images that have a fine label; components and sources are counted on all. ranking.csv, beside
the round's pseudo-labels, lists all images without the use of fine labels, those that most need a look first.
"""

import sys

from sesam.artifacts.atomic_io import write_json, write_text
from sesam.artifacts.manifest import Manifest
from sesam.errors import run_main
from sesam.params import parse_round
from sesam.paths import METRICS, RANKING, pseudo_label_dir
from sesam.reporting.label_quality import evaluate_all, label_metrics, ranking_csv


def main() -> None:
    round_name, params = parse_round(__doc__)
    manifest = Manifest.load()
    quality = evaluate_all(manifest, params, round_name)
    metrics = label_metrics(quality, manifest.classes)
    write_json(METRICS / "labels" / f"{round_name}.json", metrics)
    write_text(pseudo_label_dir(round_name) / RANKING, ranking_csv(quality.ranking))
    weak, scores = (metrics["scores"][label_set] for label_set in ("weak", "pseudo_labels"))
    if weak["precision"] is not None and weak["precision"] < 0.5:
        print(
            f"warning: only {weak['precision']:.0%} of the weak labels' pixels have the class of the fine labels. "
            "Are the classes in another order, or counted from 1 (dataset.map)?",
            file=sys.stderr,
        )
    print(f"evaluate_labels {round_name}: pseudo-labels, precision {scores['precision']}, recall {scores['recall']}")


if __name__ == "__main__":
    run_main(main)
