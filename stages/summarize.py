"""The scores of a run for `dvc metrics show`, for `dvc plots show` and for people."""

from sesam.artifacts.atomic_io import atomic_directory, write_json, write_text
from sesam.artifacts.manifest import Manifest
from sesam.artifacts.metrics_schema import read_metrics
from sesam.errors import run_main
from sesam.params import load_params
from sesam.paths import METRICS
from sesam.reporting.tables import results_text, summary, write_plots


def main() -> None:
    params, manifest = load_params(), Manifest.load()
    networks, labels = read_metrics(params.rounds, manifest.classes)
    with atomic_directory(METRICS / "plots") as folder:
        write_plots(folder, networks, labels, manifest.classes)
    write_text(METRICS / "results.txt", results_text(manifest, params, networks, labels))
    scores = summary(networks, labels)
    write_json(METRICS / "summary.json", scores)
    print("summarize: " + ", ".join(f"{key} {score}" for key, score in scores.items()) + "; see metrics/results.txt")


if __name__ == "__main__":
    run_main(main)
