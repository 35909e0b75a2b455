"""Training steps and predictions beside mmsegmentation's own, of the same network on the same scenes.

    python -m benchmarks.networks                        # on a CPU
    python -m benchmarks.networks --preset cityscapes --size 2048 1024 --precisions bfloat16 --against float32  # a GPU

Training: the stage against mmengine's Runner with mmsegmentation's data set, transforms, loss and optimizer wrapper.
Each runs twice in a process of its own, so many iterations and three times as many; the rate is of the difference.
Prediction: the stage `predict` against `mmseg.apis.inference_model` on one image after the other, PNGs written by both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import yaml
from PIL import Image

from stages.common.images import write_gray, write_label
from stages.demo.classes import CLASSES, PALETTE
from stages.demo.scenes import draw_scene

ROOT = Path(__file__).parents[1]


def workspace(folder: Path, preset: str, images: int, size: list[int] | None, workers: int) -> None:
    """Scenes, of (width, height), with weak labels, ready for `train_teacher`, with a preset's network and schedule."""
    for split, count in (("train", images), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / "mine" / kind / split).mkdir(parents=True)
        for k in range(count):
            scene = draw_scene((8, k, len(split)))
            image, labels = scene.image, scene.labels
            if size:
                image, labels = cv2.resize(image, size), cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(folder / f"mine/images/{split}/{k:04d}.png"), image[..., ::-1])
            write_label(folder / f"mine/labels/{split}/{k:04d}.png", labels, PALETTE)
    params = yaml.safe_load((ROOT / "presets/demo.yaml").read_text(encoding="utf-8"))
    if preset != "demo":
        other = yaml.safe_load((ROOT / f"presets/{preset}.yaml").read_text(encoding="utf-8"))
        params |= {group: other[group] for group in ("network", "teacher", "runtime")}
        params["network"] |= {"pretrained": None, "sha256": None}
    params["dataset"]["root"] = "mine"
    params["rounds"] = {"r1": {"teacher": "models/teacher", "labels": True}}
    params["runtime"]["workers"] = workers
    save(folder, params)
    for stage in ("prepare", "weak_labels"):
        run(folder, f"stages.{stage}")


def save(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def run(folder: Path, *module: str) -> float:
    """Seconds that a module takes, run in a folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *module], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(module)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def ours(folder: Path, iterations: int, precision: str) -> float:
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["teacher"]["iterations"], params["network"]["precision"] = iterations, precision
    save(folder, params)
    return run(folder, "stages.train_teacher")


def theirs(folder: Path, iterations: int, precision: str) -> float:
    return run(folder, "benchmarks.networks", "--peer", str(iterations), precision)


def train_theirs(iterations: int, precision: str) -> None:
    """mmsegmentation's own training, in the current folder."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    from stages.common.params import load_params
    from stages.segmentation.network import network_config
    from stages.segmentation.training import optimizer_config

    params = load_params()
    schedule, model = params.teacher, network_config(params.network, len(CLASSES))
    model["data_preprocessor"] = model["data_preprocessor"] | {"size": list(schedule.crop)}
    transforms = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {"type": "RandomResize", "scale": Image.open("mine/images/train/0000.png").size, "ratio_range": schedule.scale},
        {"type": "RandomCrop", "crop_size": tuple(schedule.crop)},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    optimizer = optimizer_config(schedule, "float32")
    if precision != "float32":
        optimizer |= {"type": "AmpOptimWrapper", "dtype": precision, "loss_scale": 1.0}
    config = {
        "default_scope": "mmseg",
        "work_dir": "theirs",
        "model": model,
        "train_dataloader": {
            "batch_size": schedule.batch,
            "num_workers": params.runtime.workers,
            "persistent_workers": True,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": {
                "type": "BaseSegDataset",
                "data_prefix": {"img_path": "mine/images/train", "seg_map_path": "data/weak"},
                "img_suffix": ".png",
                "seg_map_suffix": ".png",
                "metainfo": {"classes": CLASSES, "palette": PALETTE},
                "pipeline": transforms,
            },
        },
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations},
        "optim_wrapper": optimizer,
        "param_scheduler": [{"type": "PolyLR", "power": 0.9, "end": schedule.iterations, "by_epoch": False}],
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": 50}},
        "log_level": "ERROR",
    }
    Runner.from_cfg(Config(config)).train()


def predict_theirs() -> None:
    """The trained network on every training image, as mmsegmentation's users do it; in the current folder."""
    from mmseg.apis import inference_model, init_model

    from stages.common.device import pick_device
    from stages.common.params import load_params

    device = str(pick_device(load_params().runtime))
    model = init_model("models/teacher/mmsegmentation.json", "models/teacher/model.pth", device=device)
    for path in sorted(Path("mine/images/train").iterdir()):
        found = inference_model(model, str(path))
        confidence, classes = found.seg_logits.data.softmax(0).max(0)
        write_label(Path("theirs/labels", path.name), classes.byte().cpu().numpy(), PALETTE)
        write_gray(Path("theirs/confidence", path.name), (255 * confidence).byte().cpu().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo", help="whose network and schedule")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of images; as drawn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["float32"], help="bfloat16 too, on a GPU")
    parser.add_argument("--against", choices=("float32", "bfloat16"), help="mmsegmentation's precision; the same")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer == ["predict"]:
        return predict_theirs()
    if options.peer:
        return train_theirs(int(options.peer[0]), options.peer[1])
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, part) for part in ("few", "all")]
        for part, folder in enumerate(folders, 1):
            workspace(folder, options.preset, part * options.images, options.size, options.workers)
        print("| | SeSAM's | mmsegmentation's | times |\n| --- | --- | --- | --- |")
        n = options.iterations
        for precision in options.precisions:
            for _ in range(options.times):
                rates = []
                for way, its in ((ours, precision), (theirs, options.against or precision)):
                    rates.append(2 * n / (way(folders[1], 3 * n, its) - way(folders[1], n, its)))
                against = f" against {options.against}" if options.against else ""
                print(f"| training, {precision}{against}, steps a second | {row(rates)} |", flush=True)
        ours(folders[0], n, options.precisions[-1])
        for _ in range(options.times):
            rates = []
            for module in (("stages.predict", "r1"), ("benchmarks.networks", "--peer", "predict")):
                few, all_of_them = (run(folder, *module) for folder in folders)
                rates.append(options.images / (all_of_them - few))
            print(f"| predictions, images a second | {row(rates)} |", flush=True)


def row(rates: list[float]) -> str:
    return f"{rates[0]:.3g} | {rates[1]:.3g} | {rates[0] / rates[1]:.2f}"


if __name__ == "__main__":
    main()
