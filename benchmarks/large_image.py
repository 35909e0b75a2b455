"""One image of many tiles through the whole pipeline: seconds and peak memory of each step, and what comes out.

    python -m benchmarks.large_image --side 20000     (about an hour of two cores, 5 GB below --folder)

The image is a mosaic of drawn scenes, four times enlarged, with a label; a small one validates. `sesam.cli.tile` cuts
both, each stage runs as DVC runs it, with few iterations of training, and the pseudo-labels are joined and compared
with the label.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.long_runs import ROOT
from benchmarks.prepare import peak_memory
from sesam.demo.scenes import draw_scene

TIMES = 4  # a scene's pixel becomes so many squared
VALIDATION = 2048
STAGES = (
    "prepare",
    "weak_labels",
    "train_teacher",
    "embed",
    "predict r1",
    "prompts r1",
    "sam_masks r1",
    "select_masks r1",
    "merge_labels r1",
    "evaluate_labels r1",
    "train_student r1",
    "evaluate r1",
)


def make_image(folder: Path, split: str, side: int) -> None:
    """Write a mosaic of side x side pixels and its label; no scene is in two splits."""
    scenes = [draw_scene((11, len(split), k)) for k in range(20)]
    height, width = (TIMES * length for length in scenes[0].labels.shape)
    image, labels = np.empty((side, side, 3), np.uint8), np.empty((side, side), np.uint8)
    rng = np.random.default_rng(side)
    for top in range(0, side, height):
        for left in range(0, side, width):
            scene = scenes[rng.integers(len(scenes))]
            window = np.s_[top : min(top + height, side), left : min(left + width, side)]
            for whole, part in ((image, scene.image), (labels, scene.labels)):
                large = part.repeat(TIMES, axis=0).repeat(TIMES, axis=1)
                whole[window] = large[: window[0].stop - top, : window[1].stop - left]
    for kind, values in (("images", image), ("labels", labels)):
        path = folder / f"mine/{kind}/{split}/{split}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(values).save(path, compress_level=1)


def run(arguments: str, folder: Path) -> None:
    """Run a module of `stages` and print its seconds and peak memory; its messages if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", *f"stages.{arguments}".split()]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)
        with peak_memory(process.pid) as peak:
            code = process.wait()
        if code:
            said.seek(0)
            sys.exit(f"{arguments} failed:\n{said.read()}")
    print(f"| `{arguments}` | {time.perf_counter() - started:.0f} | {peak() / 1e9:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=20000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=100, help="of each training")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where there is disk; what is made in it is removed")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for split, side in (("train", options.side), ("val", VALIDATION)):
            make_image(folder, split, side)
        (folder / "models").mkdir()
        (folder / "models/bundled_sam.pth").symlink_to(ROOT / "models/bundled_sam.pth")
        params = yaml.safe_load((ROOT / "presets/demo.yaml").read_text(encoding="utf-8"))
        params["dataset"]["root"] = "cut"
        params["rounds"] = {"r1": {"teacher": "teacher", "fill_confident": False}}
        for network in ("teacher", "student"):
            params[network] |= {"iterations": options.iterations}
        params["runtime"]["num_workers"] = options.workers
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        print(f"{options.side} x {options.side} pixels, {options.workers} workers")
        print("| step | seconds | peak memory, GB |\n| --- | --- | --- |")
        run(f"tiles cut mine --out cut --tile {options.tile} --overlap {options.overlap}", folder)
        for stage in STAGES:
            run(stage, folder)
        run("tiles join data/pseudo_labels/r1/labels --cut cut --out joined", folder)
        (joined,) = (np.array(Image.open(path)) for path in (folder / "joined").rglob("*.png"))
        fine = np.array(Image.open(folder / "mine/labels/train/train.png"))
        labeled = joined != 255
        print(f"\nJoined: {labeled.mean():.1%} labeled, {(joined == fine)[labeled].mean():.1%} of it as the label.")


if __name__ == "__main__":
    main()
