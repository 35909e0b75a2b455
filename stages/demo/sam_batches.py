"""What the embedded SAM is trained on: regions of drawn scenes as targets, and prompts for them.

Targets are regions, never classes: the connected components of every surface and the single objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam

from stages.common.regions import Region, bounded, connected, skeleton
from stages.demo.canvas import SIZE
from stages.demo.scenes import Scene, draw_scene
from stages.sam.decoder import mask_prompt

MIN_AREA = 64  # pixels of a target, at least: a cell of the encoder's grid


@dataclass(frozen=True)
class TrainingScene:
    """A scene and its N regions.

    image: (256, 256, 3) uint8 RGB. masks: (N, 256, 32) uint8, bits packed along rows, as a
    thousand scenes are kept in memory. skeletons: for each region (n, 2) int16, x and y in pixels.
    """

    image: np.ndarray
    masks: np.ndarray
    skeletons: list[np.ndarray]


def draw_training_scene(seed: tuple[int, ...]) -> TrainingScene:
    """Draw the scene of a seed and find its regions."""
    scene = draw_scene(seed)
    regions = find_regions(scene)
    skeletons = []
    for region, _ in regions:
        x, y = skeleton(region.depth).pixels.T
        skeletons.append(np.stack([x + region.left, y + region.top], 1).astype(np.int16))
    masks = np.packbits(np.stack([mask for _, mask in regions]), axis=2)
    return TrainingScene(scene.image, masks, skeletons)


def find_regions(scene: Scene) -> list[tuple[Region, np.ndarray]]:
    """Every region of at least MIN_AREA pixels with its mask (H, W) bool.

    Connected components of each class first, then the objects that are only a part of one (a car
    in a row of touching cars).
    """
    shape = scene.labels.shape
    components = [c for k in np.unique(scene.labels) for c in connected(scene.labels == k, MIN_AREA)]
    found = [(component, component.whole(shape)) for component in components]
    for k in np.unique(scene.instances):
        mask = scene.instances == k
        if mask.sum() >= MIN_AREA and not any(np.array_equal(mask, other) for _, other in found):
            found.append((bounded(mask), mask))
    return found


def draw_batch(
    scenes: list[TrainingScene], rng: np.random.Generator, images: int, prompts: int, points: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`images` scenes, `prompts` regions of each and `points` points in each region, all at random.

    Returns images (B, 3, 256, 256) float32 RGB, about 0 to 255; targets (B * P, 256, 256) bool, an
    image's one after the other; points (B * P, points, 2) float32, x and y in pixels.
    """
    batch_images, batch_targets, batch_points = [], [], []
    for index in rng.choice(len(scenes), images, replace=False):
        scene = scenes[index]
        flip = rng.uniform() < 0.5
        image = scene.image * rng.uniform(0.8, 1.2, 3) + rng.uniform(-15, 15, 3)  # another light
        masks = np.unpackbits(scene.masks, axis=2, count=SIZE).astype(bool)
        for k in rng.choice(len(masks), prompts):
            mask, candidates = masks[k], scene.skeletons[k]
            # mostly of the skeleton, as the pipeline prompts by default; any pixel, for its other strategies
            if rng.uniform() < 0.3 or len(candidates) == 0:
                y, x = np.nonzero(mask)
                candidates = np.stack([x, y], 1)
            chosen = rng.choice(len(candidates), points, replace=len(candidates) < points)
            chosen = candidates[chosen].astype(np.float32)
            if flip:
                mask, chosen[:, 0] = mask[:, ::-1], SIZE - 1 - chosen[:, 0]
            batch_targets.append(mask)
            batch_points.append(chosen)
        batch_images.append(image[:, ::-1] if flip else image)
    return (
        torch.from_numpy(np.stack(batch_images).astype(np.float32)).permute(0, 3, 1, 2),
        torch.from_numpy(np.stack(batch_targets)),
        torch.from_numpy(np.stack(batch_points)),
    )


def encode_prompts(
    sam: Sam, kind: str, points: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse (N, T, C) and dense (N, C, h, w) embeddings of N prompts, float32.

    kind "points" takes points (N, n, 2) in pixels; "box" and "mask" are made from targets (N, 256, 256) bool.
    """
    if kind == "points":
        return sam.prompt_encoder((points, torch.ones(points.shape[:2])), None, None)
    if kind == "box":
        return sam.prompt_encoder(None, jittered_boxes(targets, rng), None)
    # the prompt encoder takes masks at half the image's size; the maximum keeps what is thin
    return sam.prompt_encoder(None, None, mask_prompt(F.max_pool2d(targets.float()[:, None], 2)[:, 0] > 0))


def jittered_boxes(masks: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Boxes (N, 4) float32 around masks (N, 256, 256) bool: x0, y0, x1, y1 in pixels, the far edges exclusive.

    Each side is off by up to a tenth of the box: the pipeline's boxes are not exact either.
    """
    boxes = []
    for mask in masks.numpy():
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        size = np.tile(box[2:] - box[:2], 2)
        boxes.append(np.clip(box + rng.uniform(-0.1, 0.1, 4) * size, 0, SIZE))
    return torch.from_numpy(np.stack(boxes).astype(np.float32))
