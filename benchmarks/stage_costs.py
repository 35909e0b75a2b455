"""What each stage of a run costs: seconds, CPU seconds, cores in use, memory.

    python -m benchmarks.stage_costs                          # what `make demo` runs
    python -m benchmarks.stage_costs -S demo.demo.train=2000 -S sam.enabled=false

The stages of params.yaml, with changes as of `dvc exp run -S`, one after the other, as `dvc repro` orders them but
without DVC, in a copy of this checkout. CPU seconds include those of a stage's processes; memory is its largest's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm import tqdm

ROOT = Path(__file__).parents[1]


class Cost(NamedTuple):
    wall: float
    cpu: float
    memory: float  # GB

    def row(self, name: str) -> str:
        cores = self.cpu / self.wall
        return f"| {name} | {self.wall:.1f} | {self.cpu:.1f} | {cores:.2f} | {self.memory:.2f} |"


def copy_of_checkout(folder: Path, changes: list[str]) -> list[str]:
    """A checkout without data, with its params changed; the commands of its stages, in order."""
    subprocess.run(("git", "clone", "-q", str(ROOT), str(folder)), check=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for change in changes:
        keys, _, value = change.partition("=")
        *groups, last = keys.split(".")
        reduce(dict.__getitem__, groups, params)[last] = yaml.safe_load(value)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    dry = subprocess.run(("dvc", "repro", "--dry"), cwd=folder, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^> (python -m stages\..*)$", dry, re.MULTILINE)


def measure(command: str, folder: Path) -> Cost:
    """Run a stage; its processes are counted because it waits for them."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command.split(), cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        if status:
            log.seek(0)
            raise SystemExit(f"{command} failed:\n{log.read().decode()}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-S", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "sesam"
        commands = copy_of_checkout(folder, options.changes)
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
