"""One row of scores for `dvc exp show`, and the tables behind `dvc plots show`: python -m stages.summarize"""

from __future__ import annotations

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.manifest import Dataset
from sesam.artifacts.metrics_schema import read_metrics
from sesam.errors import run_main
from sesam.params import load_params
from sesam.paths import METRICS
from sesam.reporting.tables import annotation_hours, network_title, remove_stale, summary, tables, write_csv


def main() -> None:
    params, data = load_params(), Dataset.load()
    networks, rounds = read_metrics(params.rounds, data.classes)
    remove_stale(METRICS / "networks", networks)
    remove_stale(METRICS / "labels", rounds)
    with atomic_directory(METRICS / "plots") as folder:
        for name, (header, rows) in tables(networks, rounds, data.classes).items():
            write_csv(folder / f"{name}.csv", header, rows)
    hours = annotation_hours(len(data.train), params.weak_labels.kind, params.annotation_minutes)
    row = summary(networks, rounds, *hours)
    write_json(METRICS / "summary.json", row)
    print("summarize: validation mIoU " + ", ".join(f"{network_title(name)} {row[name]}" for name in networks))


if __name__ == "__main__":
    run_main(main)
