"""How SAM's masks bear contrast and fog, at the five severities of Hendrycks and Dietterich (2019).

    python -m benchmarks.robustness FOLDER --void 255 --images 50

FOLDER has images/val and labels/val; the SAM is that of params.yaml. Every component of a class of at least 64 pixels
is prompted with 5 points of its skeleton, as the pipeline prompts, and the mask with the highest predicted IoU judged
by its F1. Prints a table; --out docs/NAME_robustness.md keeps it, with a picture beside it, where the ablations that
benchmarks/ablations.py writes to docs/NAME.md take it up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from sesam.errors import run_main
from sesam.params import load_params
from sesam.sam.checkpoints import load_segmenter
from tools.bundled_sam.examples import read_labeled
from tools.bundled_sam.score import score

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CONTRAST = (1.0, 0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of it at severities 0 to 5
FOG = ((0.0, 2.0), (1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))  # its weight; how fast it smooths


def contrast(image: np.ndarray, severity: int) -> np.ndarray:
    """An image (H, W, 3) uint8 with less contrast around its mean color; severity 0 to 5, 0 changes nothing."""
    x = image / 255
    mean = x.mean((0, 1), keepdims=True)
    return _bytes((x - mean) * CONTRAST[severity] + mean)


def fog(image: np.ndarray, severity: int, seed: int = 0) -> np.ndarray:
    """An image (H, W, 3) uint8 behind clouds, dimmed as much as they add; severity 0 to 5, 0 changes nothing."""
    weight, decay = FOG[severity]
    side = 1 << (max(image.shape[:2]) - 1).bit_length()
    cloud = plasma(side, decay, np.random.default_rng(seed))[: image.shape[0], : image.shape[1], None]
    x = image / 255
    return _bytes((x + weight * cloud) * x.max() / (x.max() + weight))


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """A cloud (side, side) float in [0, 1]: noise of every scale, each `decay` times weaker than the next coarser."""
    cloud, size, strength = np.zeros((side, side)), 2, 1.0
    while size <= side:
        noise = rng.uniform(-1, 1, (size, size))
        cloud += strength * cv2.resize(noise, (side, side), interpolation=cv2.INTER_LINEAR)
        size, strength = 2 * size, strength / decay
    return (cloud - cloud.min()) / np.ptp(cloud)


def _bytes(x: np.ndarray) -> np.ndarray:
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"contrast": contrast, "fog": fog}


def draw(found: dict[str, list[float]], path: Path) -> None:
    """F1 over severity, a line a corruption."""
    figure, axes = plt.subplots(figsize=(4.5, 3))
    for name, values in found.items():
        axes.plot(range(6), values, marker="o", label=name)
    axes.set(xlabel="severity", ylabel="F1 of SAM's masks", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with images/val and labels/val")
    parser.add_argument("--void", type=int, nargs="*", default=[255], help="label values that are no class")
    parser.add_argument("--images", type=int, default=50, help="the first so many")
    parser.add_argument("--out", type=Path, help="the table's file, .md, and beside it a picture, .png")
    options = parser.parse_args()
    pictures = read_labeled(options.folder, options.void, options.images)
    segmenter = load_segmenter(load_params())
    found: dict[str, list[float]] = {}
    for name, corrupt in CORRUPTIONS.items():
        found[name] = [
            score(segmenter, [(corrupt(image, severity), labels) for image, labels in pictures])["f1"]
            for severity in range(6)
        ]
    lines = [
        f"| {options.folder.name}, {len(pictures)} images: F1 at severity | 0 | 1 | 2 | 3 | 4 | 5 |",
        "| --- " * 7 + "|",
    ]
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |" for name, values in found.items()]
    print("\n".join(lines))
    if options.out:
        draw(found, options.out.with_suffix(".png"))
        about = "F1 of SAM's masks, prompted by 5 points on each component, on images with less contrast or in fog."
        picture = f"![F1 over severity]({options.out.with_suffix('.png').name})"
        options.out.write_text("\n".join((about, "", *lines, "", picture)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
