"""Training steps and predictions beside mmsegmentation's own, of the same network on the same scenes.

    python -m benchmarks.networks                        # on a CPU
    python -m benchmarks.networks --configs segformer_mit-b0_8xb2-160k_ade20k-512x512
    python -m benchmarks.networks --preset cityscapes --size 2048 1024 --precisions bfloat16 --against float32  # a GPU

Training: the stage against mmengine's Runner with mmsegmentation's data set, transforms, loss and optimizer wrapper;
the rate is of the last two thirds of the iterations. On CPUs both train at the same time, on a core each, which they
exchange the second time: other work on the machine slows both. Prediction: the stage `predict`, called a second time,
against `mmseg.apis.inference_model` on one image after the other, 60 at most, without its first; PNGs written by both.
Each in a process of its own, whose peak of memory, a GPU's where there is one, is shown too, without the reading
processes'.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
import yaml
from PIL import Image

from sesam.artifacts.image_io import write_gray, write_label
from sesam.demo.classes import CLASSES, PALETTE
from sesam.demo.scenes import draw_scene
from sesam.presets import NETWORKS, load_preset

ROOT = Path(__file__).parents[1]


def workspace(folder: Path, config: str | None, options: argparse.Namespace) -> None:
    """Scenes with weak labels, for `train_baseline`, with a preset's schedule and network, all of it trained.

    config: mmsegmentation's name of another network.
    """
    images, size = options.images, options.size
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (folder / "mine" / kind / split).mkdir(parents=True)
    scenes = [draw_scene((8, k)) for k in range(16)]

    def make(k: int) -> None:
        """Images beyond the 16 scenes are these again, but for a pixel: drawing takes longer than all that follows."""
        image, labels = scenes[k % 16].image.copy(), scenes[k % 16].labels
        image[0, 0] = k % 256, k // 256, 0
        if size:
            image, labels = cv2.resize(image, size), cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        split = "train" if k < images else "val"
        cv2.imwrite(str(folder / f"mine/images/{split}/{k:04d}.png"), image[..., ::-1])
        write_label(folder / f"mine/labels/{split}/{k:04d}.png", labels, PALETTE)

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, range(images + 2)))
    network = options.network and ROOT / NETWORKS / f"{options.network}.yaml"
    files = (ROOT / "presets/demo.yaml", None), (ROOT / f"presets/{options.preset}.yaml", network)
    params, other = (load_preset(file, network=overlay).model_dump(mode="json") for file, overlay in files)
    params |= {group: other[group] for group in ("network", "schedule", "runtime")}
    params["network"] |= {"pretrained": None, "sha256": None, "config": config}
    params["schedule"]["backbone_lr_mult"] = 1.0  # random weights cannot be frozen
    params["dataset"]["root"] = "mine"
    params["rounds"] = {"r1": {"teacher": "baseline", "fill_confident": True}}
    params["runtime"]["num_workers"] = options.workers
    save(folder, params)
    for stage in ("prepare", "weak_labels"):
        run(folder, f"stages.{stage}")


def save(folder: Path, params: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def run(folder: Path, *module: str, core: int | None = None) -> str:
    """What a module prints, run in a folder. core: the only one that it and its processes have."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", *module]
    if core is not None:
        command = ["taskset", "--cpu-list", str(core), *command]
        environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(module)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(folder: Path, *part: object, core: int | None = None) -> tuple[float, float]:
    """The rate that a part of this benchmark has, and its peak of memory in GB, in a process of its own."""
    rate, peak = run(folder, "benchmarks.networks", "--part", *map(str, part), core=core).split()[-2:]
    return float(rate), float(peak)


class Clock:
    """Steps a second, of the last two thirds of a training."""

    def __init__(self, iterations: int) -> None:
        self.iterations, self.times = iterations, dict[int, float]()

    def tick(self, done: int) -> None:
        if done in (self.iterations // 3, self.iterations):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times[done] = time.perf_counter()

    def rate(self) -> float:
        first, last = self.times
        return (last - first) / (self.times[last] - self.times[first])


def train_ours(iterations: int) -> float:
    """The stage, in the current folder."""
    from sesam.segmentation.hooks import LoggingHook
    from stages import train_baseline

    clock, after = Clock(iterations), LoggingHook.after_train_iter

    def timed(self: LoggingHook, runner: Any, batch_idx: int, *rest: Any, **named: Any) -> None:
        after(self, runner, batch_idx, *rest, **named)
        clock.tick(batch_idx + 1)

    LoggingHook.after_train_iter = timed  # type: ignore[method-assign]
    train_baseline.main()
    return clock.rate()


def train_theirs(iterations: int, precision: str) -> float:
    """mmsegmentation's own training, in the current folder."""
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from sesam.params import load_params
    from sesam.segmentation.network import network_config, training_preprocessor
    from sesam.segmentation.training import optimizer_config

    params = load_params()
    network = params.network.model_copy(update={"dtype": precision})
    schedule, model = params.schedule_of("baseline"), network_config(network, len(CLASSES))
    model["data_preprocessor"] = training_preprocessor(model, schedule.crop_size)
    transforms = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {
            "type": "RandomResize",
            "scale": Image.open("mine/images/train/0000.png").size,
            "ratio_range": schedule.scale_range,
        },
        {"type": "RandomCrop", "crop_size": tuple(schedule.crop_size)},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    config = {
        "default_scope": "mmseg",
        "work_dir": "theirs",
        "model": model,
        "train_dataloader": {
            "batch_size": schedule.batch_size,
            "num_workers": params.runtime.num_workers,
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
        "optim_wrapper": optimizer_config(schedule, network),
        "param_scheduler": [{"type": "PolyLR", "power": 0.9, "end": schedule.max_iters, "by_epoch": False}],
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": 50}},
        "env_cfg": {"cudnn_benchmark": True},  # as in mmsegmentation's own configs
        "log_level": "ERROR",
    }
    clock, hook = Clock(iterations), Hook()
    hook.after_train_iter = lambda runner, batch_idx, **_: clock.tick(batch_idx + 1)
    runner = Runner.from_cfg(Config(config))
    runner.register_hook(hook, "LOWEST")
    runner.train()
    return clock.rate()


def predict_ours() -> float:
    """The stage, in the current folder; images a second."""
    from sesam.artifacts.manifest import Manifest
    from stages import teacher_predictions

    sys.argv = ["teacher_predictions", "r1"]
    for _ in range(2):
        shutil.rmtree("data/rounds", ignore_errors=True)
        started = time.perf_counter()
        teacher_predictions.main()
    return len(Manifest.load().train) / (time.perf_counter() - started)


def predict_theirs() -> float:
    """The trained network on every training image, as mmsegmentation's users do it; in the current folder."""
    from mmseg.apis import inference_model, init_model

    from sesam.execution.device import resolve_device
    from sesam.params import load_params

    device = str(resolve_device(load_params().runtime))
    model = init_model("models/baseline/mmsegmentation.json", "models/baseline/model.pth", device=device)
    paths = sorted(Path("mine/images/train").iterdir())[:60]
    for k, path in enumerate(paths):
        if k == 1:
            started = time.perf_counter()
        found = inference_model(model, str(path))
        confidence, classes = found.seg_logits.data.softmax(0).max(0)
        write_label(Path("theirs/labels", path.name), classes.byte().cpu().numpy(), PALETTE)
        write_gray(Path("theirs/confidence", path.name), (255 * confidence).byte().cpu().numpy())
    return (len(paths) - 1) / (time.perf_counter() - started)


PARTS: dict[str, Callable[..., float]] = {
    f.__name__: f for f in (train_ours, train_theirs, predict_ours, predict_theirs)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="demo", help="whose network and schedule")
    parser.add_argument("--network", help="of presets/networks, over the preset's")
    parser.add_argument(
        "--configs", nargs="+", metavar="NAME", help="mmsegmentation's networks instead of the preset's"
    )
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of images; as drawn")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", default=["float32"], help="bfloat16 too, on a GPU")
    parser.add_argument("--against", choices=("float32", "bfloat16"), help="mmsegmentation's precision; the same")
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, *arguments = options.part
        rate = PARTS[name](*[int(x) if x.isdigit() else x for x in arguments])
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(rate, (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else host) / 1e9)
        return
    print("| | SeSAM's | mmsegmentation's | times | GB | GB |\n| --- | --- | --- | --- | --- | --- |")
    for config in options.configs or [None]:
        with tempfile.TemporaryDirectory() as name:
            workspace(Path(name), config, options)
            compare(Path(name), config or options.network or options.preset, options)


def compare(folder: Path, network: str, options: argparse.Namespace) -> None:
    """Print the rows of a network."""

    def show(title: str, ours: tuple[float, float], theirs: tuple[float, float]) -> None:
        rates = f"{ours[0]:.3g} | {theirs[0]:.3g} | {ours[0] / theirs[0]:.2f} | {ours[1]:.2f} | {theirs[1]:.2f}"
        print(f"| {network}: {title} | {rates} |", flush=True)

    against = f" against {options.against}" if options.against else ""
    for precision in options.precisions:
        params = yaml.safe_load(Path(folder, "params.yaml").read_text(encoding="utf-8"))
        params["baseline"]["max_iters"], params["network"]["dtype"] = options.iterations, precision
        save(folder, params)
        for turn in range(options.times):
            ours = partial(measure, folder, "train_ours", options.iterations)
            theirs = partial(measure, folder, "train_theirs", options.iterations, options.against or precision)
            if torch.cuda.is_available():
                rates = ours(), theirs()
            else:
                with ThreadPoolExecutor(2) as pool:
                    runs = pool.submit(ours, core=turn % 2), pool.submit(theirs, core=1 - turn % 2)
                    rates = runs[0].result(), runs[1].result()
            show(f"training, {precision}{against}, steps a second", *rates)
    for _ in range(options.times):
        show("predictions, images a second", measure(folder, "predict_ours"), measure(folder, "predict_theirs"))


if __name__ == "__main__":
    main()
