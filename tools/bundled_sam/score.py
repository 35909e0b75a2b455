"""Mean IoU of a SAM's masks for the components of labeled images: python -m tools.bundled_sam.score [FOLDER …]

FOLDER has images/val and labels/val; without one, scenes are drawn.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from sesam.demo.scenes import draw_scene
from sesam.errors import run_main
from sesam.geometry.regions import connected_regions
from sesam.geometry.rle import counts_to_rle, rle_to_mask
from sesam.labels import IGNORE_INDEX
from sesam.params import SamplingParams
from sesam.prompting import sample_points
from sesam.sam.batched_sam import BatchedSam, load_meta_sam
from sesam.sam.bundled import build_bundled_sam
from sesam.sam.registry import MODELS
from sesam.sam.sam_model import Prompt, SamModel
from tools.bundled_sam.examples import read_labeled

SEED = (7_000_002,)  # used neither by the demo nor in training
MIN_AREA = 64  # pixels
SIZES = (64, 400, 4000)  # lower bounds of component sizes in pixels, scored separately
SAMPLING = SamplingParams(prompt_type="points", strategy="skeleton", num_points=5)


def draw_labeled(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scenes for evaluation: RGB (H, W, 3) uint8 and class ids (H, W) uint8."""
    scenes = [draw_scene((*SEED, k)) for k in range(count)]
    return [(scene.image, scene.labels) for scene in scenes]


def score(sam_model: SamModel, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Mean IoU over every connected component of a class of at least 64 pixels, prompted as the pipeline does.

    pairs: RGB (H, W, 3) uint8 and class ids (H, W) uint8, 255 = no class, which is not evaluated.
    best_of_three: of the best candidate; highest_predicted: of the one with the highest predicted IoU; f1: its mean F1;
    best_from_N: of the best candidate, over components of N pixels up to the next size.
    """
    rng, best, chosen, areas = np.random.default_rng(0), [], [], []
    for image, labels in tqdm(pairs, desc="score", unit="image", leave=False):
        shape, known = labels.shape, labels != IGNORE_INDEX
        components = [region for _, region in connected_regions(labels, min_area=MIN_AREA)]
        unsure = np.zeros_like(labels)
        prompts = [Prompt(points=np.array(sample_points(region, SAMPLING, unsure, rng))) for region in components]
        (decoded,) = sam_model.decode(sam_model.encode([sam_model.preprocess(image)]), [shape], [prompts])
        for region, candidates in zip(components, decoded, strict=True):
            target = region.full_mask(shape)
            masks = np.stack([rle_to_mask(counts_to_rle(counts, shape), shape) for counts in candidates.counts]) & known
            iou = (masks & target).sum((1, 2)) / (masks | target).sum((1, 2))
            best.append(iou.max())
            chosen.append(iou[candidates.predicted_iou.argmax()])
            areas.append(region.area)
    report: dict[str, float] = {
        "components": len(best),
        "best_of_three": round(float(np.mean(best)), 4),
        "highest_predicted": round(float(np.mean(chosen)), 4),
        "f1": round(float(np.mean([2 * iou / (1 + iou) for iou in chosen])), 4),
    }
    size_class = np.digitize(areas, SIZES)
    for k, size in enumerate(SIZES, 1):
        if (size_class == k).any():
            report[f"best_from_{size}"] = round(float(np.mean(np.array(best)[size_class == k])), 4)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="with images/val and labels/val; default: drawn scenes")
    parser.add_argument("--void", type=int, nargs="*", default=[255], help="label values without a class")
    parser.add_argument("--checkpoint", type=Path, default=MODELS["bundled"].url)
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    sam_model = BatchedSam(load_meta_sam(build_bundled_sam, options.checkpoint), torch.device("cpu"))
    for folder in options.folders:
        print(folder, score(sam_model, read_labeled(folder, options.void)))
    if not options.folders:
        print(score(sam_model, draw_labeled(options.scenes)))


if __name__ == "__main__":
    run_main(main)
