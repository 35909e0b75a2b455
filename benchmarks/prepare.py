"""`prepare` beside decoding alone: each image and label by OpenCV, which is libpng and libjpeg-turbo, in two processes.

    python -m benchmarks.prepare --images 3000      (about 6 GB of disk below --folder)

Drawn scenes with noise, as photographs have it, of 2048 x 1024, half PNG and half JPEG, and their labels. Then the
pipeline up to `weak_labels` by DVC, once more after one image has changed, and once after none has.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import yaml

from sesam.artifacts.image_io import write_label
from sesam.demo.classes import PALETTE
from sesam.demo.scenes import draw_scene
from sesam.presets import load_preset

ROOT = Path(__file__).parents[1]
SIZE = (2048, 1024)
SCENES = 12


def make_scene(folder: Path, k: int) -> None:
    """Scene k as k.png, k.jpg and label.k.png."""
    scene = draw_scene((9, k))
    image = cv2.resize(scene.image, SIZE, interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(k).normal(0, 3, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(folder / f"{k}.{suffix}"), image[..., ::-1])
    write_label(folder / f"label.{k}.png", cv2.resize(scene.labels, SIZE, interpolation=cv2.INTER_NEAREST), PALETTE)


def make_dataset(folder: Path, scenes: Path, count: int) -> None:
    """Copies of the scenes, each with bytes of its own behind its end, which no decoder reads."""
    for split, numbers in (("train", range(count)), ("val", range(count, count + 2))):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for k in numbers:
            suffix = "png" if k % 2 else "jpg"
            content = (scenes / f"{k % SCENES}.{suffix}").read_bytes()
            (folder / f"images/{split}/{k:05d}.{suffix}").write_bytes(content + b"%d" % k)
            (folder / f"labels/{split}/{k:05d}.png").write_bytes((scenes / f"label.{k % SCENES}.png").read_bytes())


def decode(paths: tuple[str, str]) -> int:
    return sum(np.asarray(cv2.imread(path, cv2.IMREAD_UNCHANGED)).size for path in paths)


def decode_all(folder: Path, workers: int) -> float:
    """Seconds."""
    pairs = list(zip(*(sorted(map(str, (folder / kind).rglob("*.*"))) for kind in ("images", "labels")), strict=True))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(decode, pairs[:workers]))  # they have started
        started = time.perf_counter()
        list(pool.map(decode, pairs, chunksize=8))
        return time.perf_counter() - started


def run(*command: str, folder: Path) -> float:
    """Seconds; the command's messages if it fails."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore", "DVC_NO_ANALYTICS": "1"}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where there is disk; what is made in it is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, scenes = Path(name, "clone"), Path(name, "scenes")
        run("git", "clone", "-q", str(ROOT), str(folder), folder=ROOT)
        scenes.mkdir()
        for k in range(SCENES):
            make_scene(scenes, k)
        make_dataset(folder / "data/raw/mine", scenes, options.images)
        params = load_preset(ROOT / "presets/demo.yaml", data=Path("data/raw/mine")).model_dump(mode="json")
        params["runtime"]["num_workers"] = options.workers
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        print(f"{options.images} images of {SIZE[0]}x{SIZE[1]}, {options.workers} processes\n")
        print("| | seconds | images a second | times decoding |\n| --- | --- | --- | --- |")

        def show(title: str, seconds: float, alone: float | None = None) -> None:
            ratio = f"{seconds / alone:.2f}" if alone else ""
            print(f"| {title} | {seconds:.1f} | {options.images / seconds:.1f} | {ratio} |", flush=True)

        for _ in range(2):
            alone = decode_all(folder / "data/raw/mine", options.workers)
            show("decoding alone", alone)
            show("`prepare`", run(sys.executable, "-m", "stages.prepare", folder=folder), alone)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        dvc = (sys.executable, "-m", "dvc", "repro", "-q", "weak_labels")
        show("`dvc repro weak_labels`, the first time", run(*dvc, folder=folder))
        changed = folder / "data/raw/mine/images/train/00001.png"
        changed.write_bytes(changed.read_bytes() + b"changed")
        show("again, one image has changed", run(*dvc, folder=folder))
        show("again, nothing has changed", run(*dvc, folder=folder))
        print(f"\nLargest process: {peak:.2f} GB.")


if __name__ == "__main__":
    main()
