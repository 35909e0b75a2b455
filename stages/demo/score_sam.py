"""How well a SAM finds the components of drawn scenes: python -m stages.demo.score_sam"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from stages.common.errors import run_stage
from stages.common.masks import decode_mask, encode_counts
from stages.common.params import Sampling
from stages.common.regions import connected
from stages.demo.scenes import Scene, draw_scene
from stages.prompts import sample_points
from stages.sam.embedded import build_embedded_sam
from stages.sam.engine import fit, load_sam
from stages.sam.segmenter import Prompt, Segmenter

SEED = (7_000_002,)  # neither the demo nor the embedded SAM's training draws with it
MIN_AREA = 64  # pixels
SAMPLING = Sampling(prompt="points", strategy="skeleton", num_points=5)


def score(segmenter: Segmenter, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean IoU over every connected component of a class of at least 64 pixels, prompted as the pipeline does.

    best_of_three: of the best candidate; highest_predicted: of the one with the highest predicted IoU.
    """
    rng, best, chosen = np.random.default_rng(0), [], []
    for scene in tqdm(scenes, desc="score", unit="scene", leave=False):
        confidence = np.zeros_like(scene.labels)
        components = [c for k in np.unique(scene.labels) for c in connected(scene.labels == k, MIN_AREA)]
        prompts = [Prompt(points=np.array(sample_points(c, SAMPLING, confidence, rng))) for c in components]
        shape = scene.labels.shape
        (decoded,) = segmenter.decode(segmenter.encode([fit(scene.image, segmenter.side)]), [shape], [prompts])
        for component, found in zip(components, decoded, strict=True):
            target = component.whole(shape)
            masks = np.stack([decode_mask(encode_counts(counts, shape), shape) for counts in found.counts])
            iou = (masks & target).sum((1, 2)) / (masks | target).sum((1, 2))
            best.append(iou.max())
            chosen.append(iou[found.iou.argmax()])
    return {
        "components": len(best),
        "best_of_three": round(float(np.mean(best)), 4),
        "highest_predicted": round(float(np.mean(chosen)), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("models/embedded_sam.pth"))
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args()
    segmenter = load_sam(build_embedded_sam, options.checkpoint, torch.device("cpu"))
    print(score(segmenter, [draw_scene((*SEED, k)) for k in range(options.scenes)]))


if __name__ == "__main__":
    run_stage(main)
