"""Training samples of the bundled SAM: random crops of images, regions in them, and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from skimage.measure import label
from torch.utils.data import Dataset

from sesam.geometry.regions import region_from_mask, skeleton
from sesam.sam.bundled import IMAGE_SIZE as SIZE
from sesam.sam.decoder import mask_prompt
from tools.bundled_sam.examples import Example, Photograph

MIN_AREA = 64  # pixels of a target, at least: a cell of the encoder's grid
PADDING = 127  # pixel value outside the image: 0 once normalized, as Sam.preprocess pads
ATTEMPTS = 20  # to draw a crop with a region in it


class Batch(NamedTuple):
    """images (B, 3, S, S) float32, about 0 to 255; targets (B * P, S, S) bool, ordered by image;
    points (B * P, n, 2) float32, x and y in pixels."""

    images: torch.Tensor
    targets: torch.Tensor
    points: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """The contents of one batch. prompts: per image. points: per prompt."""

    images: int
    prompts: int
    points: int


class Batches(Dataset[Batch]):
    """Batch t, a pure function of t: a share of its images are drawn scenes, the others photographs.

    Each set of photographs is drawn in proportion to the root of its size.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        drawn: Sequence[Example],
        photographs: dict[str, list[Photograph]],
        share_drawn: float,
    ) -> None:
        self.plans, self.drawn, self.sets = plans, drawn, list(photographs.values())
        roots = np.sqrt([len(photos) for photos in self.sets])
        self.set_shares = roots / roots.sum()
        self.share_drawn = share_drawn if self.sets else 1.0

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, t: int) -> Batch:
        rng, plan = np.random.default_rng((1, t)), self.plans[t]
        images, targets, points = zip(*(self._sample(rng, plan) for _ in range(plan.images)), strict=True)
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(stacked, torch.from_numpy(np.concatenate(targets)), torch.from_numpy(np.concatenate(points)))

    def _sample(self, rng: np.random.Generator, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        for _ in range(ATTEMPTS):
            drawn = rng.uniform() < self.share_drawn
            image, numbers = self._canvas(rng, drawn)
            regions, areas = connected_numbers(numbers)
            large = np.flatnonzero(areas >= MIN_AREA)
            if len(large) == 0:
                continue
            targets = []
            for k in rng.choice(large, plan.prompts, replace=len(large) < plan.prompts):
                mask = regions == k
                # annotators drew parts; several points may also ask for a region with its neighbors
                targets.append(mask if drawn or rng.uniform() < 0.75 else with_neighbors(mask, regions, rng))
            points = [draw_points(mask, plan.points, rng) for mask in targets]
            return recolor(image, numbers > 0, rng), np.stack(targets), np.stack(points)
        raise ValueError(f"no region of {MIN_AREA} pixels in {ATTEMPTS} crops")

    def _canvas(self, rng: np.random.Generator, drawn: bool) -> tuple[np.ndarray, np.ndarray]:
        """One crop, or four small ones side by side: RGB (S, S, 3) uint8 and region numbers (S, S) int32."""
        image = np.full((SIZE, SIZE, 3), PADDING, np.uint8)
        numbers = np.zeros((SIZE, SIZE), np.int32)
        single = drawn or rng.uniform() < 0.7
        side, corners = (SIZE, [0]) if single else (SIZE // 2, [0, SIZE // 2])
        for top, left in product(corners, corners):
            crop, crop_numbers = random_crop(self._example(rng, drawn), side, rng)
            height, width = crop_numbers.shape
            window = np.s_[top : top + height, left : left + width]
            image[window] = crop
            numbers[window] = np.where(crop_numbers > 0, crop_numbers + numbers.max(), 0)  # unique in the canvas
        return image, numbers

    def _example(self, rng: np.random.Generator, drawn: bool) -> Example:
        if drawn:
            return self.drawn[int(rng.integers(len(self.drawn)))]
        photographs = self.sets[rng.choice(len(self.sets), p=self.set_shares)]
        return photographs[rng.integers(len(photographs))].read(rng)


def random_crop(example: Example, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random part of an example, its longer side scaled to `side`: RGB (h, w, 3) uint8 and numbers (h, w) int32."""
    image, numbers = example.image, example.maps[int(rng.integers(len(example.maps)))].astype(np.int32)
    if rng.uniform() < 0.6:
        (height, width), share = numbers.shape, rng.uniform(0.4, 1.0)
        aspect = np.exp(rng.uniform(-0.4, 0.4))
        h = max(8, round(min(1.0, share * aspect) * height))
        w = max(8, round(min(1.0, share / aspect) * width))
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        image, numbers = image[top : top + h, left : left + w], numbers[top : top + h, left : left + w]
    scale = side / max(numbers.shape)
    size = tuple(max(1, round(n * scale)) for n in numbers.shape[::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    numbers = cv2.resize(numbers, size, interpolation=cv2.INTER_NEAREST).astype(np.int32)
    if rng.uniform() < 0.5:
        image, numbers = image[:, ::-1], numbers[:, ::-1]
    return image, numbers


def connected_numbers(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected regions of a map (H, W) of numbers, 0 = none: new numbers (H, W), and the area of each."""
    regions = label(numbers, background=0, connectivity=2)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    return regions, areas


def with_neighbors(mask: np.ndarray, regions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A region (H, W) bool together with one or two regions that touch it."""
    for _ in range(rng.integers(1, 3)):
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~mask
        touching = np.unique(regions[rim])
        touching = touching[touching > 0]
        if len(touching) == 0:
            break
        mask = mask | (regions == rng.choice(touching))
    return mask


def draw_points(mask: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points (n, 2) float32, x and y, in a mask (H, W) bool.

    Mostly anywhere on the skeleton, as the pipeline prompts; on a part of it, as for a short stroke; close together,
    as for a dot; or anywhere in the mask, as other strategies do.
    """
    region = region_from_mask(mask)
    candidates = skeleton(region.distance).pixels
    layout = rng.choice(("skeleton", "stroke", "dot", "anywhere"), p=(0.5, 0.2, 0.1, 0.2))
    if layout == "anywhere" or len(candidates) == 0:
        candidates = np.argwhere(region.mask)[:, ::-1]
    elif layout in ("stroke", "dot"):
        distance = np.linalg.norm(candidates - candidates[rng.integers(len(candidates))], axis=1)
        near = max(count, len(candidates) // 3) if layout == "stroke" else count
        candidates = candidates[np.argsort(distance, kind="stable")[:near]]
    chosen = candidates[rng.choice(len(candidates), count, replace=len(candidates) < count)]
    return (chosen + np.array([region.left, region.top])).astype(np.float32)


def recolor(image: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image (H, W, 3) uint8 in another light, float32; now and then gray, blurred or noisy. Padding stays."""
    x: np.ndarray = image.astype(np.float32)
    if rng.uniform() < 0.1:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.2))
    gray = x.mean(2, keepdims=True)
    x = gray + (x - gray) * (0.0 if rng.uniform() < 0.05 else rng.uniform(0.5, 1.4))
    x = (x - 127) * rng.uniform(0.6, 1.3) * rng.uniform(0.9, 1.1, 3) + 127 + rng.uniform(-25, 25)
    if rng.uniform() < 0.1:
        x = x + rng.normal(0, rng.uniform(2, 10), x.shape)
    padding = (image == PADDING).all(2) & ~inside
    return np.where(padding[..., None], PADDING, x.clip(0, 255)).astype(np.float32)


def encode_prompts(
    sam: Sam, kind: str, points: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse (N, T, C) and dense (N, C, h, w) embeddings of N prompts, float32.

    kind "points" takes points (N, n, 2) in pixels; "box" and "mask" are made from targets (N, S, S) bool.
    """
    if kind == "points":
        return sam.prompt_encoder((points, torch.ones(points.shape[:2])), None, None)
    if kind == "box":
        return sam.prompt_encoder(None, jittered_boxes(targets, rng), None)
    # the prompt encoder takes masks at half the image's size; the maximum keeps thin parts
    return sam.prompt_encoder(None, None, mask_prompt(F.max_pool2d(targets.float()[:, None], 2)[:, 0] > 0))


def jittered_boxes(masks: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Boxes (N, 4) float32 around masks (N, S, S) bool: x0, y0, x1, y1 in pixels, the far edges exclusive.

    Each side is off by up to a tenth of the box: the pipeline's boxes are not exact either.
    """
    boxes = []
    for mask in masks.numpy():
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        size = np.tile(box[2:] - box[:2], 2)
        boxes.append(np.clip(box + rng.uniform(-0.1, 0.1, 4) * size, 0, SIZE))
    return torch.from_numpy(np.stack(boxes).astype(np.float32))
