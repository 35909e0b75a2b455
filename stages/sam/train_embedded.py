"""Train the embedded SAM, class-agnostically, on scenes drawn with seeds of its own.

    python -m stages.sam.train_embedded --out models/embedded_sam.pth

Targets are regions, never classes: the connected components of every surface and
the single objects. Two things shorten the long plateau of training a SAM from
nothing: the encoder starts on a dense task (tell the region around a pixel by
the similarity of embeddings), and the decoder's first look at the image is
initialised to attend where the prompt is.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label as connected_components
from skimage.morphology import skeletonize
from torch import nn

from stages.common.scenes import SIZE, draw_scene
from stages.sam.decoder import mask_prompt, predict_masks
from stages.sam.embedded import WIDTH, build_embedded_sam

TRAIN_SEED, TEST_SEED = 7_000_001, 7_000_002  # the demo draws with small seeds
MIN_AREA = 40  # pixels; the score counts components of at least 64
LOW = SIZE // 2  # side of the decoder's masks


def regions(labels: np.ndarray, instances: np.ndarray, min_area: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every region of a scene: (mask (H, W) bool, skeleton pixels (n, 2) int16 as x, y).

    Connected components of each class first, then the objects that are only a
    part of one (a car in a row of touching cars).
    """
    found = []
    components = [connected_components(labels == k, connectivity=2) for k in np.unique(labels)]
    maps = [(c, True) for c in components] + [(instances, False)]
    for ids, whole in maps:
        for k in range(1, int(ids.max()) + 1):
            mask = ids == k
            area = int(mask.sum())
            if area < min_area:
                continue
            if not whole and any(np.array_equal(mask, other) for other, _ in found):
                continue
            rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
            top, left = rows[0], columns[0]
            crop = mask[top : rows[-1] + 1, left : columns[-1] + 1]
            y, x = np.nonzero(skeletonize(np.pad(crop, 1)))
            found.append((mask, np.stack([x + left - 1, y + top - 1], 1).astype(np.int16)))
    return found


def prepare_scene(seed: tuple[int, ...]) -> dict:
    scene = draw_scene(seed)
    masks, skeletons = zip(*regions(scene.labels, scene.instances, MIN_AREA), strict=True)
    return {
        "image": scene.image,
        "masks": np.packbits(np.stack(masks), axis=2),
        "skeletons": skeletons,
    }


class Sampler:
    """Draws batches of images, prompts and target masks."""

    def __init__(self, scenes: list[dict], seed: int) -> None:
        self.scenes = scenes
        self.rng = np.random.default_rng(seed)

    def batch(self, images: int, prompts: int, count: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """images (B, 3, S, S) float32, targets (B * P, S, S) bool, points (B * P, count, 2) x, y."""
        rng, photos, targets, points = self.rng, [], [], []
        for index in rng.choice(len(self.scenes), images, replace=False):
            scene = self.scenes[index]
            flip = rng.uniform() < 0.5
            photo = scene["image"].astype(np.float32)
            photo = photo * rng.uniform(0.8, 1.2, 3) + rng.uniform(-15, 15, 3)
            masks = np.unpackbits(scene["masks"], axis=2, count=SIZE).astype(bool)
            area = masks.sum((1, 2)).astype(np.float64)
            chosen = rng.choice(len(masks), prompts, p=(weight := area**0.15) / weight.sum())
            for k in chosen:
                spots = scene["skeletons"][k]
                if rng.uniform() < 0.3 or len(spots) == 0:
                    y, x = np.nonzero(masks[k])
                    spots = np.stack([x, y], 1)
                picked = spots[rng.choice(len(spots), count, replace=len(spots) < count)].astype(np.float32)
                if rng.uniform() < 0.2:
                    picked += rng.uniform(-2, 2, picked.shape)
                mask = masks[k]
                if flip:
                    mask, picked[:, 0] = mask[:, ::-1], SIZE - 1 - picked[:, 0]
                targets.append(mask)
                points.append(np.clip(picked, 0, SIZE - 1))
            photos.append(photo[:, ::-1] if flip else photo)
        photos = torch.from_numpy(np.stack(photos).astype(np.float32)).permute(0, 3, 1, 2)
        return photos, torch.from_numpy(np.stack(targets)), np.stack(points)


def boxes_of(masks: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Boxes (N, 4) around masks (N, S, S), each side off by up to a tenth of the box."""
    boxes = []
    for mask in masks.numpy():
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
        size = np.tile(box[2:] - box[:2], 2)
        boxes.append(np.clip(box + rng.uniform(-0.1, 0.1, 4) * size, 0, SIZE))
    return torch.from_numpy(np.stack(boxes).astype(np.float32))


def encode_prompts(
    sam: nn.Module, kind: str, points: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse and dense prompt embeddings of points (N, n, 2), or of boxes or masks made from targets (N, S, S)."""
    if kind == "points":
        return sam.prompt_encoder((points + 0.5, torch.ones(points.shape[:2])), None, None)
    if kind == "box":
        return sam.prompt_encoder(None, boxes_of(targets, rng), None)
    return sam.prompt_encoder(None, None, mask_prompt(F.max_pool2d(targets.float()[:, None], 2)[:, 0] > 0))


def region_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus Dice of (..., H, W) logits, one value per mask."""
    target = target.expand_as(logits)
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 2 * cross + dice


def overlap(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of logits > 0 with target > 0.5, one value per mask."""
    mask, target = logits > 0, (target > 0.5).expand_as(logits)
    return (mask & target).sum((-2, -1)) / (mask | target).sum((-2, -1)).clamp(min=1)


class DenseHead(nn.Module):
    """Pixel embeddings (B, 16, 128, 128) from image embeddings, for the dense start only."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(WIDTH, 16 * 16, 1)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(-2.0))

    def forward(self, embeddings: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Logits (B, P, 128, 128) of the similarity to the mean embedding at points (B, P, n, 2)."""
        pixels = F.normalize(F.pixel_shuffle(self.mix(embeddings), 4), dim=1)
        grid = (points + 0.5) / SIZE * 2 - 1
        queries = F.grid_sample(pixels, grid, align_corners=False).mean(-1)  # (B, 16, P)
        return 10 * self.scale * torch.einsum("bcp,bchw->bphw", queries, pixels) + 5 * self.offset


def look_at_the_prompt(sam: nn.Module) -> None:
    """Start the attention from prompts to the image as a kernel on position, peaked at the prompt."""
    sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.mul_(2.0)
    transformer = sam.mask_decoder.transformer
    attentions = [layer.cross_attn_token_to_image for layer in transformer.layers]
    for attention in [*attentions, transformer.final_attn_token_to_image]:
        nn.init.orthogonal_(attention.k_proj.weight, gain=1.6)
        attention.q_proj.weight.data.copy_(attention.k_proj.weight.data)
        for linear in (attention.v_proj, attention.out_proj):
            nn.init.orthogonal_(linear.weight)


@torch.no_grad()
def score(sam: nn.Module, scenes: list[dict], min_area: int = 64, points: int = 5) -> dict[str, float]:
    """Mean IoU over the class components of held-out scenes, from `points` skeleton points."""
    sam.eval()
    rng, best, chosen = np.random.default_rng(0), [], []
    for scene in scenes:
        found = [r for r in regions(scene.labels, np.zeros_like(scene.instances), min_area)]
        prompts = [
            spots[rng.choice(len(spots), points, replace=len(spots) < points)]
            if len(spots)
            else np.argwhere(mask)[[mask.sum() // 2] * points, ::-1]
            for mask, spots in found
        ]
        coordinates = torch.from_numpy(np.stack(prompts)).float() + 0.5
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
        embedding = sam.image_encoder((image - sam.pixel_mean) / sam.pixel_std)
        sparse, dense = sam.prompt_encoder((coordinates, torch.ones(coordinates.shape[:2])), None, None)
        logits, quality = predict_masks(sam, embedding.expand(len(found), -1, -1, -1), sparse, dense)
        logits = F.interpolate(logits[:, 1:], (SIZE, SIZE), mode="bilinear", align_corners=False)
        iou = overlap(logits, torch.from_numpy(np.stack([m for m, _ in found]))[:, None].float())
        best += iou.max(1).values.tolist()
        chosen += iou.gather(1, quality[:, 1:].argmax(1, keepdim=True))[:, 0].tolist()
    return {"best_of_three": float(np.mean(best)), "highest_predicted": float(np.mean(chosen)), "components": len(best)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--dense-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=4600, help="the dense ones included")
    parser.add_argument("--images", type=int, default=6, help="per step")
    parser.add_argument("--prompts", type=int, default=8, help="per image")
    parser.add_argument("--seed", type=int, default=0, help="of the draws of a run; the weights and the order of work")
    parser.add_argument("--start", type=Path, help="go on from these weights, without a dense start")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    started = time.time()
    with Pool(options.workers) as pool:
        scenes = pool.map(prepare_scene, [(TRAIN_SEED, options.seed, k) for k in range(options.scenes)], chunksize=8)
        tests = pool.map(draw_scene, [(TEST_SEED, k) for k in range(200)], chunksize=8)
    print(f"{len(scenes)} scenes drawn in {time.time() - started:.0f} s", flush=True)

    sam, head = build_embedded_sam(), DenseHead()
    look_at_the_prompt(sam)
    if options.start:
        sam.load_state_dict(torch.load(options.start, weights_only=True))
        options.dense_steps = 0
    sam.image_encoder.to(memory_format=torch.channels_last)
    trained = [*sam.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)

    def rate(step: int) -> float:
        warm = min(
            1.0, (step + 1) / 200, max(step - options.dense_steps + 1, 1) / 300 if step >= options.dense_steps else 1.0
        )
        return warm * (0.5 * (1 + math.cos(math.pi * step / options.steps)) * 0.99 + 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    sampler = Sampler(scenes, seed=options.seed + 1)
    rng = np.random.default_rng(options.seed + 2)
    log: list[float] = []
    for step in range(options.steps):
        sam.train()
        dense_start = step < options.dense_steps
        kind = "points" if dense_start else rng.choice(("points", "box", "mask"), p=(0.8, 0.12, 0.08))
        count = int(rng.choice((1, 2, 3, 5, 8), p=(0.1, 0.1, 0.2, 0.5, 0.1)))
        prompts = 2 * options.prompts if dense_start else options.prompts
        photos, targets, points = sampler.batch(options.images, prompts, count)
        embeddings = sam.image_encoder((photos - sam.pixel_mean) / sam.pixel_std)
        soft = F.avg_pool2d(targets.float()[:, None], 2)  # (N, 1, 128, 128)
        where = torch.from_numpy(points)
        if dense_start:
            logits = head(embeddings, where.view(options.images, prompts, count, 2)).flatten(0, 1)[:, None]
            loss = region_loss(logits, soft).mean()
            log.append(float(overlap(logits.detach(), soft).mean()))
        else:
            sparse, dense = encode_prompts(sam, kind, where, targets, rng)
            logits, quality = predict_masks(sam, embeddings.repeat_interleave(prompts, 0), sparse, dense)
            losses = region_loss(logits, soft)
            iou = overlap(logits.detach(), soft)
            loss = losses[:, 0].mean() * 0.5 + losses[:, 1:].min(1).values.mean() + F.mse_loss(quality, iou)
            log.append(float(iou[:, 1:].max(1).values.mean()))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: IoU {np.mean(log[-50:]):.3f}, {(time.time() - started) / 60:.1f} min", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            report = score(sam, tests[:40] if step + 1 < options.steps else tests)
            report |= {"steps": step + 1, "minutes": round((time.time() - started) / 60, 1)}
            print(json.dumps(report), flush=True)
            half = {k: v.half() if v.is_floating_point() else v for k, v in sam.state_dict().items()}
            partial = options.out.with_suffix(".partial")
            torch.save(half, partial)
            partial.replace(options.out)


if __name__ == "__main__":
    main()
