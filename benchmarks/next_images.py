"""Which images to annotate next: batches chosen at random, by a ranking, or for what they would add, simulated.

    sesam init idd && python -m benchmarks.next_images --jobs 2       # hours on two cores; interrupted, it continues

Starts with a twentieth of the training images scribbled and adds three batches of as many, so that every method pays
the same hours. After each batch a student learns from all that is scribbled, by the pipeline's own stages, and predicts
the others for the next choice. Prints validation mIoU after each batch. What was learned from a set of images is kept
in FOLDER, so that methods share the start; delete it when the code has changed.

Methods. random: nested shuffles. ranking: the largest share of pixels below the confidence γ, as `ranking.csv` orders
images without annotation. plan: one image after the other, the one that adds most to Σ over classes k of u_k · log(1 +
n_k), where n_k is the pixels of k in what is chosen and scribbled, and u_k the mean of 1 − confidence where k is
predicted: rare and doubtful classes first, and not the same scene again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from sesam.artifacts.atomic_io import atomic_path, json_digest
from sesam.artifacts.image_io import read_label
from sesam.datasets.importer import choose_subset
from sesam.datasets.layouts import find_pairs
from sesam.errors import SesamError, run_main
from sesam.params import Params, load_params

ROOT = Path(__file__).parents[1]
BATCHES, SHARE = 3, 0.05
ROUND = ["prompts", "sam_masks", "select_masks", "merge_labels", "evaluate_labels", "train_student", "evaluate"]
STAGES = ["check_inputs", "prepare", "weak_labels", "embed", "teacher_predictions r1", *(f"{x} r1" for x in ROUND)]
PREDICT = ["check_inputs", "prepare", "teacher_predictions r2"]  # whose teacher is r1


class Predicted(NamedTuple):
    """Of n images and K classes. pixels: predicted of each class, (n, K); doubt: the sum of 1 − confidence there,
    (n, K); unsure: the share of an image's pixels below γ, (n,)."""

    pixels: np.ndarray
    doubt: np.ndarray
    unsure: np.ndarray


def by_ranking(predicted: Predicted, known: np.ndarray, count: int) -> list[int]:
    """The `count` images with most unsure pixels. known: (n,) bool, those that are annotated."""
    order = np.argsort(-predicted.unsure, kind="stable")
    return [int(k) for k in order if not known[k]][:count]


def by_gain(predicted: Predicted, known: np.ndarray, count: int) -> list[int]:
    """The `count` images that add most to Σ u_k · log(1 + n_k), greedily; see this module's docstring."""
    doubt = predicted.doubt.sum(0) / np.maximum(predicted.pixels.sum(0), 1)
    have, taken, chosen = predicted.pixels[known].sum(0), known.copy(), list[int]()
    for _ in range(min(count, int((~known).sum()))):
        gains = (np.log1p(have + predicted.pixels) - np.log1p(have)) @ doubt
        best = int(np.where(taken, -np.inf, gains).argmax())
        taken[best], have = True, have + predicted.pixels[best]
        chosen.append(best)
    return chosen


CHOICES: Mapping[str, Callable[[Predicted, np.ndarray, int], list[int]]] = {"ranking": by_ranking, "plan": by_gain}


def run_stages(folder: Path, stages: Sequence[str], params: Params, cores: int) -> None:
    """Run stages in a folder, without DVC; SesamError with the last line of what failed."""
    params = params.model_copy(update={"runtime": params.runtime.model_copy(update={"num_workers": cores})})
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": f"{cores}",
    }
    for stage in stages:
        command = (sys.executable, "-m", *f"stages.{stage}".split())
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SesamError(f"{folder}: {stage} failed: {done.stderr.strip().splitlines()[-1:]}")


def learn(folder: Path, ids: Sequence[str], pool: Sequence[str], params: Params, cores: int) -> tuple[float, Predicted]:
    """The validation mIoU of a student of the images `ids`, and what it predicts of `pool`; kept beside `folder`."""
    kept = folder.with_name(f"{json_digest(sorted(ids), params.model_dump(mode='json'))[:16]}.npz")
    if kept.exists():
        with np.load(kept) as arrays:
            return float(arrays["mIoU"]), Predicted(*(arrays[name] for name in Predicted._fields))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "models", folder / "models", ignore=lambda _, names: {*names} - {"none"})
    chosen = params.dataset.model_copy(update={"subset": sorted(ids)})
    run_stages(folder, STAGES, params.model_copy(update={"dataset": chosen}), cores)
    score = json.loads((folder / "metrics/networks/r1.json").read_text())["mIoU"]
    every = params.dataset.model_copy(update={"subset": sorted(pool)})
    second = params.rounds["r1"].model_copy(update={"teacher": "r1"})
    later = params.model_copy(update={"dataset": every, "rounds": params.rounds | {"r2": second}})
    run_stages(folder, PREDICT, later, cores)
    predicted = read_predictions(folder / "data/rounds/r2/teacher_predictions", pool, params)
    shutil.rmtree(folder)
    with atomic_path(kept) as temporary, temporary.open("wb") as file:
        np.savez(file, mIoU=score, **predicted._asdict())
    return score, predicted


def read_predictions(folder: Path, pool: Sequence[str], params: Params) -> Predicted:
    """What a teacher's predictions in `folder` say of the images `pool`."""
    num_classes, gamma = len(params.dataset.classes or ()), params.teacher.confidence_threshold
    pixels, doubt = np.zeros((len(pool), num_classes)), np.zeros((len(pool), num_classes))
    unsure = np.zeros(len(pool))
    for k, name in enumerate(pool):
        classes = read_label(folder / f"labels/{name}.png").ravel()
        confidence = read_label(folder / f"confidence/{name}.png").ravel() / 255
        pixels[k] = np.bincount(classes, minlength=num_classes)
        doubt[k] = np.bincount(classes, 1 - confidence, minlength=num_classes)
        unsure[k] = (confidence < gamma).mean()
    return Predicted(pixels, doubt, unsure)


def simulate(method: str, seed: int, pool: Sequence[str], params: Params, folder: Path, cores: int) -> list[float]:
    """Validation mIoU after the start and after each batch."""
    shuffled, count = np.random.default_rng(seed).permutation(len(pool)), round(SHARE * len(pool))
    known, scores, seeded = np.zeros(len(pool), bool), list[float](), params.model_copy(update={"seed": seed})
    known[shuffled[:count]] = True
    for batch in range(BATCHES + 1):
        ids = [pool[int(k)] for k in np.flatnonzero(known)]
        score, predicted = learn(folder / f"{method}-{seed}", ids, pool, seeded, cores)
        scores.append(score)
        print(f"{method}, seed {seed}, batch {batch}: {len(ids)} images, mIoU {score:.3f}", flush=True)
        chosen = shuffled[: (batch + 2) * count] if method == "random" else CHOICES[method](predicted, known, count)
        known[chosen] = True
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=("random", *CHOICES), default=["random", *CHOICES])
    parser.add_argument("--folder", type=Path, default=Path("build/next_images"))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    params = load_params()
    if params.dataset.format != "folder" or list(params.rounds) != ["r1"] or not params.dataset.classes:
        raise SesamError(
            "params.yaml: the simulation needs a data set of format folder with classes, and one round r1."
        )
    alone = params.rounds["r1"].model_copy(update={"teacher": "none", "fill_confident": False})
    root = Path(params.dataset.root).absolute()
    dataset = params.dataset.model_copy(update={"root": str(root)})
    params = params.model_copy(update={"rounds": {"r1": alone}, "dataset": dataset})
    pool = [pair.id for pair in choose_subset(find_pairs("folder", root, None, "train"), params.dataset.subset)]
    options.folder.mkdir(parents=True, exist_ok=True)
    cores = max(1, (os.cpu_count() or 1) // options.jobs)
    keys = [(method, seed) for seed in options.seeds for method in options.methods]

    def run(key: tuple[str, int]) -> list[float]:
        return simulate(*key, pool=pool, params=params, folder=options.folder, cores=cores)

    with ThreadPoolExecutor(options.jobs) as threads:
        results = dict(zip(keys, threads.map(run, keys), strict=True))
    for method in options.methods:
        scores = np.array([results[method, seed] for seed in options.seeds])
        spread = scores.std(0, ddof=min(1, len(scores) - 1))
        print(method, *(f"{mean:.3f} ± {off:.3f}" for mean, off in zip(scores.mean(0), spread, strict=True)))


if __name__ == "__main__":
    run_main(main)
