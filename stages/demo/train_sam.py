"""Train the embedded SAM, class-agnostically, on scenes drawn with seeds of its own.

    python -m stages.demo.train_sam --out models/embedded_sam.pth

Two things shorten the long plateau of training a SAM from nothing: it starts with attention to
where the prompt is (`sam_initial_weights`), and the first steps leave out the attention from the
image to the prompts, which makes a prompt cheap (`sam_decoding`). Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import nn

from stages.common import regions
from stages.common.errors import SesamError, run_stage
from stages.common.files import fingerprint, sha256, whole
from stages.demo import (
    canvas,
    classes,
    objects,
    sam_batches,
    sam_decoding,
    sam_initial_weights,
    sam_losses,
    scenes,
    score_sam,
)
from stages.sam import decoder, embedded
from stages.sam.engine import SamSegmenter

SEED = (7_000_001, 1)  # the demo draws with (seed, split)
# what decides the weights, beside this file: a stopped training goes on only if none of it has changed
SCENE_CODE = (canvas, classes, objects, scenes, regions)
SAM_CODE = (sam_batches, sam_decoding, sam_initial_weights, sam_losses, embedded, decoder)


class StepResult(NamedTuple):
    """Of one training step: the loss, a scalar with its graph, and mean IoU of the best candidate.

    linear_iou: of the best linear read-out; None with the full decoder.
    """

    loss: torch.Tensor
    iou: float
    linear_iou: float | None


def compute_loss(
    sam: Sam, training_scenes: list[sam_batches.TrainingScene], step: int, options: argparse.Namespace
) -> StepResult:
    """The loss of step number `step`, whose batch and prompts the number alone decides."""
    rng = np.random.default_rng((1, step))
    shared = step < options.shared_steps
    prompts = 2 * options.prompts if shared else options.prompts
    kind = "points" if shared else rng.choice(("points", "box", "mask"), p=(0.8, 0.1, 0.1))
    count = int(rng.choice((1, 2, 3, 5, 8), p=(0.1, 0.1, 0.1, 0.6, 0.1)))  # mostly 5, as the pipeline prompts
    images, targets, points = sam_batches.draw_batch(training_scenes, rng, options.images, prompts, count)
    embeddings = sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std)
    sparse, dense = sam_batches.encode_prompts(sam, kind, points, targets, rng)
    soft_targets = F.avg_pool2d(targets.float()[:, None], 2)  # (N, 1, 128, 128), as the decoder's masks

    linear_loss: torch.Tensor | float = 0.0
    linear_iou = None
    if shared:
        logits, predicted_iou, upscaled = sam_decoding.predict_masks_shared(sam, embeddings, sparse)
        # on every second row and column: a quarter of the regression's time and memory
        coarse_targets = soft_targets[..., ::2, ::2]
        linear = sam_losses.best_linear_masks(upscaled[..., ::2, ::2], coarse_targets)
        linear_iou = float(sam_losses.mask_iou(linear, coarse_targets).mean())
        weights = sam_losses.pixel_weights(coarse_targets.flatten(2)).view_as(coarse_targets)
        distance = (weights * (logits[..., ::2, ::2] - linear.detach()) ** 2).sum((-2, -1)).mean()
        # 0.1: squares of distances between logits are large against the other terms
        linear_loss = sam_losses.region_loss(linear, coarse_targets).mean() + 0.1 * distance
    else:
        logits, predicted_iou = sam_decoding.predict_masks(sam, embeddings.repeat_interleave(prompts, 0), sparse, dense)
    losses = sam_losses.region_loss(logits, soft_targets)
    iou = sam_losses.mask_iou(logits.detach(), soft_targets)
    # of the three candidates only the best learns, as SAM was trained; the single mask, the first, counts half:
    # the pipeline does not use it
    loss = linear_loss + losses[:, 0].mean() * 0.5 + losses[:, 1:].min(1).values.mean()
    loss = loss + F.mse_loss(predicted_iou, iou)
    return StepResult(loss, float(iou[:, 1:].max(1).values.mean()), linear_iou)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--shared-steps", type=int, default=1000, help="with the cheaper decoder, first")
    parser.add_argument("--steps", type=int, default=6000, help="the shared ones included")
    parser.add_argument("--images", type=int, default=8, help="per step")
    parser.add_argument("--prompts", type=int, default=4, help="per image; twice as many in the shared steps")
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.manual_seed(0)
    started = time.time()
    with Pool(options.workers) as pool:
        seeds = [(*SEED, k) for k in range(options.scenes)]
        training_scenes = pool.map(sam_batches.draw_training_scene, seeds, chunksize=8)
        test_scenes = pool.map(scenes.draw_scene, [(*score_sam.SEED, k) for k in range(40)], chunksize=8)
    print(f"{len(training_scenes)} scenes drawn in {time.time() - started:.0f} s", flush=True)

    sam = embedded.build_embedded_sam()
    sam_initial_weights.initialise_prompt_attention(sam)
    sam.image_encoder.to(memory_format=torch.channels_last)  # the faster layout for convolutions on a CPU
    optimiser = torch.optim.AdamW(sam.parameters(), lr=1e-3, weight_decay=0.01)

    def learning_rate_factor(step: int) -> float:
        """A warm-up of 100 steps, then a half cosine down to a hundredth."""
        warmup = min(1.0, (step + 1) / 100)
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / options.steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, learning_rate_factor)
    iou_log, first_step = [], 0
    checkpoint = options.out.with_suffix(".state")
    decisive_options = {key: value for key, value in vars(options).items() if key not in ("out", "workers")}
    code = [sha256(Path(inspect.getfile(module))) for module in (sys.modules[__name__], *SCENE_CODE, *SAM_CODE)]
    made_of = fingerprint(decisive_options, code)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["made_of"] != made_of:
            raise SesamError(f"{checkpoint} is of a training with other options or code. Delete it to start anew.")
        sam.load_state_dict(state["sam"])
        optimiser.load_state_dict(state["optimiser"])
        scheduler.load_state_dict(state["schedule"])
        started -= state["seconds"]
        first_step = state["step"]

    for step in range(first_step, options.steps):
        sam.train()  # scoring, below, leaves it in eval mode
        loss, iou, linear_iou = compute_loss(sam, training_scenes, step, options)
        iou_log.append(iou)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        if (step + 1) % 50 == 0:
            minutes = (time.time() - started) / 60
            linear = "" if linear_iou is None else f" (best linear {linear_iou:.3f})"
            print(f"step {step + 1}: IoU {np.mean(iou_log[-50:]):.3f}{linear}, {minutes:.1f} min", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            report = score_sam.score(SamSegmenter(sam, torch.device("cpu")), test_scenes)
            report |= {"steps": step + 1, "minutes": round((time.time() - started) / 60, 1)}
            print(json.dumps(report), flush=True)
            # float16 halves the file that the repository carries
            weights = {k: v.half() if v.is_floating_point() else v for k, v in sam.state_dict().items()}
            state = {"sam": sam.state_dict(), "optimiser": optimiser.state_dict(), "schedule": scheduler.state_dict()}
            state |= {"made_of": made_of, "seconds": time.time() - started, "step": step + 1}
            for path, value in ((options.out, weights), (checkpoint, state)):
                with whole(path) as temporary:
                    torch.save(value, temporary)
    checkpoint.unlink()


if __name__ == "__main__":
    run_stage(main)
