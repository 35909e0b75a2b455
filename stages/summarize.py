"""One row of scores for `dvc exp show`, and the tables behind `dvc plots show`: python -m stages.summarize"""

from __future__ import annotations

from sesam.artifacts.atomic_io import whole_folder, write_json
from sesam.artifacts.manifest import Dataset
from sesam.artifacts.metrics_schema import read_judged
from sesam.errors import run_stage
from sesam.params import load_params
from sesam.paths import METRICS
from sesam.reporting.tables import annotation_hours, remove_others, summary, tables, title, write_csv


def main() -> None:
    params, data = load_params(), Dataset.load()
    networks, rounds = read_judged(params.rounds, data.classes)
    remove_others(METRICS / "networks", networks)
    remove_others(METRICS / "labels", rounds)
    with whole_folder(METRICS / "plots") as folder:
        for name, (header, rows) in tables(networks, rounds, data.classes).items():
            write_csv(folder / f"{name}.csv", header, rows)
    hours = annotation_hours(len(data.train), params.weak.kind, params.evaluation.minutes)
    row = summary(networks, rounds, *hours)
    write_json(METRICS / "summary.json", row)
    print("summarize: validation mIoU " + ", ".join(f"{title(name)} {row[name]}" for name in networks))


if __name__ == "__main__":
    run_stage(main)
