"""Supervision levels and ablations: queued as DVC experiments, run, and written to docs/results/demo.md.

    make ablations                              # everything: hours on a CPU
    make ablations ROWS="fine scribble" SEEDS="0 1"
    make ablations ROWS=budgets                 # a table's rows: mIoU over hours of annotation
    python -m benchmarks.ablations --jobs 2     # two experiments side by side, each on half of the cores
    python -m benchmarks.ablations --rows sam-sam2 --weights sam2=/models/sam2.1-hiera-large/model.safetensors
    python -m benchmarks.ablations --out docs/results/idd.md       # another data set, after `sesam init idd`

Every row is params.yaml with a few changes, one experiment per seed. Figures are kept beside the page as NAME.json:
experiments with the same code and params, here or where that file was committed, do not run again, and DVC's run cache
repeats only the stages that a row changes. Interrupted, it continues. Every table has one commit.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from collections.abc import Mapping, Set
from pathlib import Path

from benchmarks.ablation_results import RESULTS, Results, git
from benchmarks.ablation_rows import USUAL, Row, tables
from benchmarks.ablation_tables import COMPARED, write_page
from sesam.errors import SesamError, run_main
from sesam.params import FINE_TRAIN_LABELS, Params, load_params
from sesam.sam.registry import MODELS

POLL_SECONDS = 20


def check_params(params: Params) -> None:
    """SesamError where the rows would not mean what they say, or could not be run."""
    decisive = ("dvc.yaml", "params.yaml", "sesam", "stages")
    if dirty := git("status", "--porcelain", "--", *decisive):
        raise SesamError(f"Commit your changes first, for the tables say what they were made of:\n{dirty}")
    if list(params.rounds) != ["r1"]:
        raise SesamError("params.yaml: the ablations start from one round; rounds must have r1 alone.")
    if params.weak_labels.path != FINE_TRAIN_LABELS:
        raise SesamError(
            f"params.yaml: the ablations compare simulated weak labels: weak_labels.path must be {FINE_TRAIN_LABELS}."
        )
    if any(params.weak_labels.mix.shares.values()):
        raise SesamError("params.yaml: the rows say what annotators draw: the fractions of weak_labels.mix must be 0.")
    made = {f"data/raw/{name}" for name in params.demo}
    paths = {"dataset.root": params.dataset.root, "sam.checkpoint": params.sam.checkpoint}
    for key, path in paths.items():
        if path is None or Path(path).is_absolute():
            continue
        if path not in made and not git("ls-files", "--", path, f"{path}.dvc"):
            raise SesamError(
                f"params.yaml: {key} is {path}, which neither git nor DVC tracks; experiments run in folders of "
                "their own and would not find it. Give an absolute path."
            )


def dvc(*command: str) -> str:
    """Run a dvc command; SesamError with its output if it fails."""
    done = subprocess.run(("dvc", *command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SesamError(f"dvc {' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def queued() -> tuple[dict[str, str], int]:
    """The state of each named experiment in DVC's queue, and how many workers run one."""
    text = dvc("queue", "status")
    rows = [line.split() for line in text.splitlines()]
    states = {
        row[1]: row[-1] for row in rows if len(row) >= 5 and row[-1] in ("Queued", "Running", "Failed", "Success")
    }
    active = re.search(r"Worker status: (\d+) active", text)
    return states, int(active[1]) if active else 0


def run_queue(names: Set[str], jobs: int, environment: dict[str, str]) -> None:
    """Run the queued experiments `names`, `jobs` side by side, until none is left or no worker runs one.

    A worker of DVC's queue can end at a message that another is writing, so those that are missing are started again;
    `dvc exp run --run-all` would wait for ever.
    """
    ended, idle = set[str](), 0
    while names - ended and idle < 2:  # a worker takes a moment from one experiment to the next
        states, active = queued()
        for name in sorted(names - ended):
            if (state := states.get(name)) in ("Success", "Failed"):
                ended.add(name)
                print(f"ablations: {name}: {state}, {len(ended)} of {len(names)}", flush=True)
        waiting = "Queued" in (states.get(name) for name in names)
        idle = 0 if active or waiting else idle + 1
        if waiting:
            start = ("dvc", "queue", "start", "-q", "-j", str(jobs))
            subprocess.run(start, env=environment, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(POLL_SECONDS)


def run_missing(rows: list[Row], seeds: list[int], jobs: int, results: Results) -> None:
    """Queue and run what has not been run; SesamError if an experiment fails."""

    def still_missing() -> dict[str, tuple[Row, int]]:
        results.collect(rows)
        results.save()
        every = [(row, seed) for row in rows for seed in seeds]
        return {f"{row.name}-s{seed}": (row, seed) for row, seed in every if not results.is_current(row, seed)}

    missing = still_missing()
    print(f"ablations: {len(missing)} of {len(rows) * len(seeds)} experiments to run", flush=True)
    if not missing:
        return
    states, _ = queued()
    if busy := [name for name, state in states.items() if state == "Running"]:
        raise SesamError(f"{', '.join(busy)} still run. Wait, or stop them with `dvc queue stop --kill`.")
    if left := [name for name, state in states.items() if name in missing and state != "Success"]:
        dvc("queue", "remove", *left)
    environment = dict(os.environ)
    workers = []
    if jobs > 1:
        cores = max(1, (os.cpu_count() or 1) // jobs)
        environment |= {"OMP_NUM_THREADS": str(cores)}
        workers = ["-S", f"runtime.num_workers={cores}"]
    for name, (row, seed) in missing.items():
        changes = [part for change in (*row.changes, f"seed={seed}") for part in ("-S", change)]
        dvc("exp", "run", "--queue", "-n", name, *changes, *workers, *([row.target] if row.target else []))
    try:
        run_queue(missing.keys(), jobs, environment)
    except KeyboardInterrupt:
        dvc("queue", "stop", "--kill")  # DVC's own workers would go on
        raise
    if failed := still_missing():
        raise SesamError(
            f"{', '.join(failed)} did not finish: see `dvc queue logs NAME`. The others are kept; run this again for "
            "the rest."
        )


def weights_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in MODELS or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no MODEL=FILE; models are {', '.join(MODELS)}")
    return name, Path(path)


def rows_by_word(groups: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """What --rows takes: a row by its name, or all that a table compares by its title in small letters."""
    rows = {row.name: row for group in groups.values() for row in group}
    tables = {title: [*(rows[name] for name in COMPARED.get(title, ())), *group] for title, group in groups.items()}
    return {title.lower(): table for title, table in tables.items()} | {name: [row] for name, row in rows.items()}


def main() -> None:
    params = load_params()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="or tables; default: those of supervision, steps, training, labels"
    )
    parser.add_argument(
        "--weights", nargs="+", type=weights_file, default=[], metavar="MODEL=FILE", help="of other SAMs"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="experiments side by side")
    parser.add_argument("--out", type=Path, default=RESULTS.with_suffix(".md"), help="with NAME.json beside it")
    parser.add_argument("--write-only", action="store_true", help="write the tables of what has been run")
    options = parser.parse_args()
    groups = tables(params, dict(options.weights))
    usual = [row for title in USUAL for row in groups[title]]
    known = rows_by_word(groups)
    if unknown := set(options.rows or ()) - known.keys():
        parser.error(f"no row {', '.join(sorted(unknown))}; rows are {', '.join(sorted(known))}")
    check_params(params)
    results = Results.load(options.out.with_suffix(".json"))
    if not options.write_only:
        chosen = usual if options.rows is None else [row for word in options.rows for row in known[word]]
        run_missing([*dict.fromkeys(chosen)], options.seeds, options.jobs, results)
    write_page(params, groups, results, options.out)


if __name__ == "__main__":
    run_main(main)
