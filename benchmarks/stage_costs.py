"""What each stage of a run costs: seconds, CPU seconds, cores in use, memory.

    python -m benchmarks.stage_costs                          # what `make demo` runs
    python -m benchmarks.stage_costs -S demo.demo.train=2000 -S sam.enabled=false

The stages of params.yaml, with changes as of `dvc exp run -S`, one after the other and without DVC, in a clone of this
checkout. CPU seconds are of a stage and all its processes; memory is the largest of one of them. On Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import subprocess
import tempfile
import time
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import yaml
from dvc.repo import Repo
from networkx import topological_sort
from tqdm import tqdm

ROOT = Path(__file__).parents[1]


class Cost(NamedTuple):
    wall: float
    cpu: float
    memory: float  # GB

    def row(self, name: str) -> str:
        cores = self.cpu / self.wall
        return f"| {name} | {self.wall:.1f} | {self.cpu:.1f} | {cores:.2f} | {self.memory:.2f} |"


def clone_checkout(folder: Path, changes: list[str]) -> list[str]:
    """Clone what is committed, with params.yaml as it is here, then changed; the commands of its stages, in order."""
    subprocess.run(("git", "clone", "-q", str(ROOT), str(folder)), check=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for change in changes:
        keys, _, value = change.partition("=")
        *groups, last = keys.split(".")
        reduce(dict.__getitem__, groups, params)[last] = yaml.safe_load(value)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    with Repo(folder) as repo:
        graph = repo.index.graph  # from stages to their dependencies
        return [stage.cmd for stage in reversed(list(topological_sort(graph)))]


def measure(command: str, folder: Path) -> Cost:
    """Run a stage, and wait for its processes, which outlive it: the fork server and what it has forked."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile() as log:
        started, wall, cpu, memory = time.perf_counter(), 0.0, 0.0, 0.0
        process = subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=log, stderr=log)
        with contextlib.suppress(ChildProcessError):  # none is left
            while True:
                ended, status, usage = os.wait4(-1, 0)
                cpu += usage.ru_utime + usage.ru_stime
                memory = max(memory, usage.ru_maxrss * 1024 / 1e9)
                if ended == process.pid:
                    wall = time.perf_counter() - started
                    if status:
                        log.seek(0)
                        raise SystemExit(f"{command} failed:\n{log.read().decode()}")
    return Cost(wall, cpu, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: a stage's processes become ours when it ends
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sesam"
        commands = clone_checkout(folder, options.changes)
        costs = {}
        for command in tqdm(commands, unit="stage"):
            costs[command.removeprefix("python -m stages.")] = measure(command, folder)
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| stage | seconds | CPU seconds | cores in use | GB |\n| --- | --- | --- | --- | --- |")
    for stage, cost in costs.items():
        print(cost.row(stage))
    walls, cpus, memories = zip(*costs.values(), strict=True)
    print(Cost(sum(walls), sum(cpus), max(memories)).row("all"))


if __name__ == "__main__":
    main()
