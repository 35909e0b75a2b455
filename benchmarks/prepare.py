"""Rate and memory of `prepare` on images and label PNGs of 2048 x 1024, for two sizes of the data set.

    python -m benchmarks.prepare     (needs 5 GB in the temporary folder)

Makes Cityscapes' layout of drawn scenes, enlarged, and runs the stage on it as `dvc repro` does.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import psutil
import yaml
from PIL import Image

from sesam.datasets.label_maps import CITYSCAPES
from sesam.demo.scenes import draw_scene

SIZE = (1024, 2048)
IDS = np.array([CITYSCAPES[k] for k in (0, 1, 2, 8, 10, 5, 7, 11, 13)], np.uint8)  # of the drawn classes


def enlarge(values: np.ndarray, how: int) -> np.ndarray:
    return cv2.resize(values, SIZE[::-1], interpolation=how)


@contextmanager
def peak_memory(process: int | None = None) -> Iterator[Callable[[], int]]:
    """The greatest memory, bytes, that this or another process and all below it had together while the block ran."""
    root, peak, over = psutil.Process(process), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            total = 0
            for one in [root, *_below(root)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: peak[0]
    finally:
        over.set()
        thread.join()


def _below(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.Error:
        return []


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()


def lay_out(root: Path, images: int, distinct: int = 16) -> None:
    """`images_csv` to train on and one to validate on, of `distinct` scenes; no two files have the same bytes."""
    noise = np.random.default_rng(0)
    photographs, labels = [], []
    for k in range(distinct):
        pair = [draw_scene((9, 2 * k + side)) for side in range(2)]
        image = enlarge(np.hstack([scene.image for scene in pair]), cv2.INTER_CUBIC)
        photographs.append(png(np.clip(image + noise.integers(-2, 3, image.shape), 0, 255).astype(np.uint8)))
        labels.append(png(IDS[enlarge(np.hstack([scene.labels for scene in pair]), cv2.INTER_NEAREST)]))
    for number in range(images + 1):
        split, city = ("val", "frankfurt") if number == images else ("train", "aachen")
        name = f"{city}_{number:06d}_000019"
        for folder, end, files in (("leftImg8bit", "", photographs), ("gtFine", "_labelIds", labels)):
            path = root / folder / split / city / f"{name}_{folder}{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[number % distinct] + b"%d" % number)  # what follows a PNG's end is not read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    params = yaml.safe_load(Path("presets/cityscapes.yaml").read_text(encoding="utf-8"))
    params["runtime"]["num_workers"] = options.workers
    params["dataset"]["root"] = "raw"
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    print("| images | seconds | images a second | memory GiB |\n| --- | --- | --- | --- |")
    for images in options.images:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            lay_out(folder / "raw", images)
            (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            started = time.perf_counter()
            command = [sys.executable, "-m", "stages.prepare"]
            with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
                with peak_memory(run.pid) as peak:
                    said = b"".join(run.communicate())
                if run.returncode:
                    sys.exit(said.decode())
            seconds = time.perf_counter() - started
            print(f"| {images} | {seconds:.1f} | {images / seconds:.1f} | {peak() / 2**30:.2f} |", flush=True)


if __name__ == "__main__":
    main()
