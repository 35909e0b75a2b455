"""Images per second of weak labels and prompts at 2048 x 1024, against the plain way: for each component one
skeleton of the whole image, with scikit-image.

    python -m benchmarks.weak_labels

Every row reads the same label PNGs and writes its result, with --workers processes; the settings are those of
presets/cityscapes.yaml. Labels are drawn scenes, enlarged.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from skimage.measure import label
from skimage.morphology import skeletonize

from benchmarks.prepare import SIZE, enlarge, peak_memory
from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.component_records import write_prompts
from sesam.artifacts.label_png import read_label, write_label
from sesam.artifacts.manifest import ImageRecord
from sesam.demo.classes import PALETTE
from sesam.demo.scenes import draw_scene
from sesam.execution.parallel import map_images
from sesam.geometry.regions import connected_regions
from sesam.geometry.rle import mask_to_rle
from sesam.labels import IGNORE_INDEX
from sesam.params import Params, Runtime, load_params
from sesam.prompting import image_prompts
from sesam.weak import weak_label

KINDS = ("coarse", "scribble", "point")


def draw(path: Path, params: Params, kind: str) -> None:
    weak = params.weak_labels.model_copy(update={"kind": kind})
    write_label(path.with_suffix(f".{kind}.png"), weak_label(read_label(path), weak), PALETTE)


def prompt(path: Path, params: Params) -> None:
    """Prompts for a teacher that is right and sure of every pixel."""
    fine = read_label(path)
    weak, sure = np.full_like(fine, IGNORE_INDEX), np.full_like(fine, 255)
    record = ImageRecord(path.stem, str(path), fine.shape[0], fine.shape[1], "0" * 64)
    components = image_prompts(weak, fine, sure, params, ("r1", path.stem))
    write_prompts(path.with_suffix(".json"), record, "points", components)


def whole_images(fine: np.ndarray, min_area: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Class, mask and skeleton, (H, W) bool, of each component, the plain way."""
    for k in np.setdiff1d(fine, [IGNORE_INDEX]):
        ids = label(fine == k, connectivity=2)
        for number in range(1, ids.max() + 1):
            mask = ids == number
            if mask.sum() >= min_area:
                yield int(k), mask, skeletonize(mask)


def draw_plainly(path: Path, params: Params) -> None:
    fine = read_label(path)
    drawn = np.full_like(fine, IGNORE_INDEX)
    for k, _, skeleton in whole_images(fine, params.weak_labels.min_area):
        drawn[skeleton] = k
    write_label(path.with_suffix(".plain.png"), drawn, PALETTE)


def prompt_plainly(path: Path, params: Params) -> None:
    found = []
    for k, mask, skeleton in whole_images(read_label(path), params.components.min_area):
        y, x = np.nonzero(skeleton)
        some = np.random.default_rng(0).permutation(len(y))[: params.sampling.num_points]
        found.append({"class": k, "rle": mask_to_rle(mask), "points": np.stack([x[some], y[some]], 1).tolist()})
    write_json(path.with_suffix(".plain.json"), found)


def scenes(folder: Path, images: int) -> list[Path]:
    """Label PNGs of two scenes each, side by side."""
    paths = [folder / f"{k}.png" for k in range(images)]
    for k, path in enumerate(paths):
        fine = np.hstack([draw_scene((9, 2 * k + side)).labels for side in range(2)])
        write_label(path, enlarge(fine, cv2.INTER_NEAREST), PALETTE)
    return paths


def timed(path: Path, work: Callable[[Path], None]) -> float:
    started = time.perf_counter()
    work(path)
    return time.perf_counter() - started


def measure(name: str, work: Callable[[Path], None], paths: list[Path], runtime: Runtime) -> tuple[float, float]:
    """Images per second of `runtime.num_workers` processes side by side, without their start; the peak of memory, GiB."""
    with peak_memory() as peak:
        seconds = map_images(partial(timed, work=work), paths, runtime, name)
    return runtime.num_workers / float(np.mean(seconds)), peak() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--plain-images", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    params = load_params(Path("presets/cityscapes.yaml"))
    runtime = params.runtime.model_copy(update={"num_workers": options.workers})
    with tempfile.TemporaryDirectory() as folder:
        paths = scenes(Path(folder), options.images)
        counts = [len(connected_regions(read_label(path), min_area=params.weak_labels.min_area)) for path in paths]
        print(f"{SIZE[1]} x {SIZE[0]}, {np.mean(counts):.0f} components an image, {options.workers} processes")
        found = []
        for plainly, ours in (
            (("plain weak labels", draw_plainly), [(kind, partial(draw, kind=kind)) for kind in KINDS]),
            (("plain prompts", prompt_plainly), [("prompts", prompt)]),
        ):
            plain = None
            for name, work in [plainly, *ours]:
                some = paths if plain else paths[: options.plain_images]
                rate, memory = measure(name, partial(work, params=params), some, runtime)
                plain = plain or rate
                found.append(f"| {name} | {rate:.3g} | {rate / plain:.1f} | {memory:.2f} |")
    print("\n".join(["| | images a second | times | memory GiB |", "| --- | --- | --- | --- |", *found]))


if __name__ == "__main__":
    main()
