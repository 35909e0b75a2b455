"""Memory and open files of every per-image stage over many images: they must not grow with their number.

    python -m benchmarks.long_runs --images 2000     (about four minutes of two cores)

The images are small crops of drawn scenes, so that the number of images counts and not their size. Each stage runs in a
process of its own, as DVC runs it; memory and descriptors of it and its workers are sampled, and the second half of
its images is compared with the second quarter.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import psutil
import yaml
from PIL import Image

from sesam.demo.scenes import draw_scene
from sesam.presets import load_preset

ROOT = Path(__file__).parents[1]
SIDE = (96, 128)
STAGES = (
    "prepare",
    "weak_labels",
    "train_baseline",
    "predict r1",
    "prompts r1",
    "embed",
    "sam_masks r1",
    "select_masks r1",
    "merge_labels r1",
    "evaluate_labels r1",
    "evaluate baseline",
)


class Sample(NamedTuple):
    """Of a process and its workers at a moment: seconds since the start, memory in MB (PSS), open descriptors."""

    seconds: float
    memory: float
    files: int


def make_images(folder: Path, count: int, validation: int) -> None:
    """`count` images to train on, and `validation` to validate on: crops of scenes, each with a label."""
    scenes = [draw_scene((7, k)) for k in range(20)]
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", validation)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for k in range(number):
            scene = scenes[k % len(scenes)]
            height, width = scene.labels.shape
            y, x = rng.integers(height - SIDE[0]), rng.integers(width - SIDE[1])
            window = (slice(y, y + SIDE[0]), slice(x, x + SIDE[1]))
            image = scene.image[window].copy()
            image[0, :4] = np.frombuffer(np.array([k, split == "val"], np.uint32).tobytes() * 2, np.uint8)[:12].reshape(
                4, 3
            )
            Image.fromarray(image).save(folder / f"images/{split}/{k:05d}.png")
            Image.fromarray(scene.labels[window]).save(folder / f"labels/{split}/{k:05d}.png")


def watched(command: list[str], folder: Path) -> list[Sample]:
    """Run a stage and sample it; its messages if it fails."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    samples, started = [], time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(command, cwd=folder, env=env, stdout=said, stderr=said)
        while process.poll() is None:
            memory, files = 0.0, 0
            try:
                for one in [process, *process.children(recursive=True)]:
                    memory += one.memory_full_info().pss / 1e6
                    files += one.num_fds()
                samples.append(Sample(time.monotonic() - started, memory, files))
            except psutil.Error:
                pass
            time.sleep(0.5)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read()}")
    return samples


def between(samples: list[Sample], start: float, end: float) -> list[Sample]:
    last = samples[-1].seconds
    return [one for one in samples if start * last <= one.seconds <= end * last]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "mine", options.images, options.images)
        params = load_preset(ROOT / "presets/demo.yaml").model_dump(mode="json")
        params["dataset"]["root"] = "mine"
        params["rounds"] = {"r1": {"teacher": "baseline", "fill_confident": True}}
        params["schedule"] |= {"max_iters": options.images // 2, "batch_size": 2, "crop_size": [64, 64]}
        params["network"] |= {"base_channels": 4, "head_channels": 8}
        params["runtime"]["num_workers"] = options.workers
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        print(f"{options.images} images of {SIDE[1]}x{SIDE[0]}, {options.workers} workers")
        print("| stage | seconds | memory, second quarter, MB | memory, second half, MB | open files, the same |")
        print("| --- | --- | --- | --- | --- |")
        for stage in STAGES:
            samples = watched([sys.executable, "-m", *f"stages.{stage}".split()], folder)
            early, late = between(samples, 0.25, 0.5), between(samples, 0.5, 0.95)
            memory = [median(one.memory for one in part) for part in (early, late)]
            files = [max(one.files for one in part) for part in (early, late)]
            row = (
                stage,
                f"{samples[-1].seconds:.0f}",
                f"{memory[0]:.0f}",
                f"{memory[1]:.0f}",
                f"{files[0]}, {files[1]}",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
