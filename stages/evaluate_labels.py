"""Where labels are lost: each label set of a round against fine labels, by class, and what became of SAM's masks.

python -m stages.evaluate_labels ROUND

Also writes, beside the round's pseudo-labels, ranking.csv: all images, those that most need a look first, which no fine
label decides. Scores are of the training images that have a fine label; components and
sources are counted on all.
"""

from __future__ import annotations

from sesam.artifacts.atomic_io import write_json, write_text
from sesam.artifacts.manifest import Dataset
from sesam.errors import run_main
from sesam.params import parse_round
from sesam.paths import METRICS, RANKING, pseudo_label_dir
from sesam.reporting.label_quality import evaluate_all, label_metrics, ranking_csv


def main() -> None:
    name, params = parse_round(__doc__.splitlines()[0])
    data = Dataset.load()
    found = evaluate_all(data, params, name)
    judged = label_metrics(found, data.classes)
    write_json(METRICS / "labels" / f"{name}.json", judged)
    write_text(pseudo_label_dir(name) / RANKING, ranking_csv(found["doubts"]))
    merged = judged["scores"]["merged"]
    print(f"evaluate_labels {name}: merged labels, precision {merged['precision']}, recall {merged['recall']}")


if __name__ == "__main__":
    run_main(main)
