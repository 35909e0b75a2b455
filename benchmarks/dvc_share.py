"""What DVC itself costs over many images: the wall time of `dvc repro`, stage by stage, less that of its command.

    python -m benchmarks.dvc_share --images 20000

The images are small crops of drawn scenes, on which the stages take least, so that DVC's share is rather too large than
too small. The run is in a clone of this repository's last commit, with a cache of its own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.long_runs import ROOT, SIDE, make_images

BEFORE = ("check_paths", "prepare", "weak_labels", "train_teacher", "embed")
STAGES = ("predict@r1", "prompts@r1", "sam_masks@r1", "select_masks@r1", "merge_labels@r1")
PARTS = ("predictions", "prompts", "masks", "selected")
TIMED = """#!/bin/sh
start=$(date +%s.%N)
{python} "$@"
code=$?
echo "$start $(date +%s.%N)" >> {log}
exit $code
"""


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Seconds that a command takes; its messages if it fails."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name, "sesam"), Path(name, "log")
        subprocess.run(("git", "clone", "-q", str(ROOT), str(folder)), check=True)
        make_images(folder / "data/raw/mine", options.images, 20)
        params = yaml.safe_load((folder / "presets/demo.yaml").read_text(encoding="utf-8"))
        params["draw"], params["dataset"]["root"] = {}, "data/raw/mine"
        params["rounds"] = {"r1": {"teacher": "teacher", "fill_confident": True}}
        params["teacher"] |= {"iterations": 20, "batch": 2, "crop": [64, 64]}
        params["network"] |= {"width": 4, "head_width": 8}
        params["runtime"]["num_workers"] = options.workers
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        (Path(name) / "bin").mkdir()
        shim = Path(name, "bin/python")
        shim.write_text(TIMED.format(python=sys.executable, log=log), encoding="utf-8")
        shim.chmod(0o755)
        environment = os.environ | {"PATH": f"{shim.parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}

        print(f"{options.images} images of {SIDE[1]}x{SIDE[0]}, {options.workers} workers")
        print("| stage | its command, seconds | DVC, seconds | files |\n| --- | --- | --- | --- |")
        total, own = 0.0, 0.0
        for stage in (*BEFORE, *STAGES):
            log.write_text("", encoding="utf-8")
            wall = timed(["dvc", "repro", "--single-item", stage], folder, environment)
            spans = [[float(value) for value in line.split()] for line in log.read_text(encoding="utf-8").splitlines()]
            command = sum(end - start for start, end in spans)
            if stage in STAGES:
                total, own = total + wall, own + wall - command
            files = ""
            if stage in STAGES[:-1]:
                made = folder / "data/rounds/r1" / PARTS[STAGES.index(stage)]
                files = str(sum(path.is_file() for path in made.rglob("*")))
            elif stage == STAGES[-1]:
                files = str(sum(path.is_file() for path in (folder / "data/pseudo_labels/r1").rglob("*")))
            print(f"| {stage} | {command:.1f} | {wall - command:.1f} | {files} |", flush=True)
        print(f"\nFrom {STAGES[0]} to {STAGES[-1]}: DVC has {own / total:.1%} of {total:.0f} s.")


if __name__ == "__main__":
    main()
