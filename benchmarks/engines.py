"""SAM's stage on Ray beside local processes, on the same cores: images a second, start of the engine left out.

    python -m benchmarks.engines --images 200 --workers 2

Each engine makes the masks of so many images and of twice as many; the rate is of the difference. Their files must be
the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.long_runs import ROOT, make_images

BEFORE = ("prepare", "weak_labels", "embed", "predict r1", "prompts r1")


def run(stage: str, folder: Path) -> float:
    """Seconds that a stage takes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", *f"stages.{stage}".split()]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{stage} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def workspace(folder: Path, images: int, workers: int) -> None:
    """All that comes before SAM's masks of round r1."""
    make_images(folder / "mine", images, 2)
    (folder / "models").mkdir()
    (folder / "models/bundled_sam.pth").symlink_to(ROOT / "models/bundled_sam.pth")
    params = yaml.safe_load((ROOT / "presets/demo.yaml").read_text(encoding="utf-8"))
    params["dataset"]["root"] = "mine"
    params["runtime"] |= {"workers": workers, "cache_gb": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for stage in BEFORE:
        run(stage, folder)


def masks(folder: Path, engine: str) -> tuple[float, list[bytes]]:
    """Seconds of the stage, and its files."""
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["runtime"]["backend"] = engine
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    made = folder / "data/rounds/r1/masks"
    shutil.rmtree(made, ignore_errors=True)
    seconds = run("sam_masks r1", folder)
    return seconds, [path.read_bytes() for path in sorted(made.iterdir())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, str(times)) for times in (1, 2)]
        for times, folder in enumerate(folders, 1):
            folder.mkdir()
            workspace(folder, times * options.images, options.workers)
        print("| local, images a second | Ray, images a second | Ray / local |\n| --- | --- | --- |")
        for _ in range(options.times):
            rates = {}
            for engine in ("local", "ray"):
                (once, _), (twice, files) = (masks(folder, engine) for folder in folders)
                rates[engine] = options.images / (twice - once), files
            if rates["local"][1] != rates["ray"][1]:
                sys.exit("Ray made other files.")
            local, ray = rates["local"][0], rates["ray"][0]
            print(f"| {local:.2f} | {ray:.2f} | {ray / local:.2f} |", flush=True)


if __name__ == "__main__":
    main()
