"""Train the embedded SAM, class-agnostically, on scenes drawn with seeds of its own.

    python -m stages.demo.train_sam --out models/embedded_sam.pth

Targets are regions, never classes: the connected components of every surface and
the single objects. Two things shorten the long plateau of training a SAM from
nothing: the decoder's look at the image is initialised to attend where the
prompt is, and the first steps leave out the attention from the image to the
prompts, which makes a prompt cost a fraction of the full decoder's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import nn

from stages.common.errors import SesamError, run_stage
from stages.common.files import code_of, fingerprint, whole
from stages.common.regions import bounded, connected, skeleton
from stages.demo import canvas, classes, objects, score_sam
from stages.demo import scenes as scenes_module
from stages.demo.canvas import SIZE
from stages.demo.scenes import draw_scene
from stages.sam import decoder, embedded
from stages.sam.decoder import mask_prompt
from stages.sam.embedded import WIDTH, build_embedded_sam
from stages.sam.engine import SamSegmenter

SEED = (7_000_001, 1)  # the demo draws with (seed, split)
MIN_AREA = 64  # pixels
LOW = SIZE // 2  # side of the decoder's masks


def regions(labels: np.ndarray, instances: np.ndarray, min_area: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every region of a scene: (mask (H, W) bool, skeleton pixels (n, 2) int16 as x, y).

    Connected components of each class first, then the objects that are only a
    part of one (a car in a row of touching cars).
    """
    classes = [(labels == k, True) for k in np.unique(labels)]
    objects = [(instances == k, False) for k in np.unique(instances)]
    found = []
    for pixels, of_class in classes + objects:
        for region in connected(pixels, min_area) if of_class else [bounded(pixels)]:
            mask = region.whole(labels.shape)
            if region.area < min_area or (not of_class and any(np.array_equal(mask, other) for other, _ in found)):
                continue
            x, y = skeleton(region.depth).pixels.T
            found.append((mask, np.stack([x + region.left, y + region.top], 1).astype(np.int16)))
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

    def __init__(self, scenes: list[dict]) -> None:
        self.scenes = scenes

    def batch(
        self, rng: np.random.Generator, images: int, prompts: int, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """images (B, 3, S, S) float32, targets (B * P, S, S) bool, points (B * P, count, 2) x, y."""
        photos, targets, points = [], [], []
        for index in rng.choice(len(self.scenes), images, replace=False):
            scene = self.scenes[index]
            flip = rng.uniform() < 0.5
            photo = scene["image"].astype(np.float32)
            photo = photo * rng.uniform(0.8, 1.2, 3) + rng.uniform(-15, 15, 3)
            masks = np.unpackbits(scene["masks"], axis=2, count=SIZE).astype(bool)
            for k in rng.choice(len(masks), prompts):
                spots = scene["skeletons"][k]
                if rng.uniform() < 0.3 or len(spots) == 0:
                    y, x = np.nonzero(masks[k])
                    spots = np.stack([x, y], 1)
                picked = spots[rng.choice(len(spots), count, replace=len(spots) < count)].astype(np.float32)
                mask = masks[k]
                if flip:
                    mask, picked[:, 0] = mask[:, ::-1], SIZE - 1 - picked[:, 0]
                targets.append(mask)
                points.append(picked)
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
        return sam.prompt_encoder((points, torch.ones(points.shape[:2])), None, None)
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


def predict_masks(
    sam: Sam, embeddings: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """MaskDecoder.predict_masks for prompts that each bring their own image embedding.

    embeddings: (P, C, h, w) float, one per prompt. sparse: (P, T, C). dense:
    (P, C, h, w). Returns logits (P, 4, 4h, 4w), the single mask first and then the
    three candidates, and predicted IoU (P, 4). segment-anything's own takes one
    image a call, stages/sam/decoder.py is for inference alone.
    """
    decoder = sam.mask_decoder
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)
    position = sam.prompt_encoder.get_dense_pe().expand(len(sparse), -1, -1, -1)
    states, image = decoder.transformer(embeddings + dense, position, tokens)
    image = image.transpose(1, 2).reshape(embeddings.shape)
    upscaled = decoder.output_upscaling(image)
    weights = torch.stack([mlp(states[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    logits = (weights @ upscaled.flatten(2)).view(len(sparse), -1, *upscaled.shape[-2:])
    return logits, decoder.iou_prediction_head(states[:, 0])


def predict_shared(
    sam: nn.Module, embeddings: torch.Tensor, sparse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mask decoder without its attention from the image to the prompts.

    embeddings: (B, C, h, w). sparse: (B * P, T, C). Returns logits (B * P, 4, 4h, 4w),
    predicted IoU (B * P, 4) and the up-sampled image (B, C / 8, 4h, 4w). The image
    is then the same for all its prompts and is looked at and up-sampled once, so a
    prompt costs a fraction of the full decoder's. Equal to it while that
    attention's output is zero.
    """
    decoder, images = sam.mask_decoder, len(embeddings)
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(sparse), -1, -1), sparse], dim=1)
    background = sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    keys = (embeddings + background).flatten(2).transpose(1, 2)
    position = sam.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2)

    def look(attention: nn.Module, queries: torch.Tensor) -> torch.Tensor:
        together = (queries + tokens).reshape(images, -1, WIDTH)
        return attention(q=together, k=keys + position, v=keys).view_as(queries)

    queries = tokens
    for layer in decoder.transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            queries = queries + layer.self_attn(q=queries + tokens, k=queries + tokens, v=queries)
        queries = layer.norm1(queries)
        queries = layer.norm2(queries + look(layer.cross_attn_token_to_image, queries))
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(keys)
    final = look(decoder.transformer.final_attn_token_to_image, queries)
    queries = decoder.transformer.norm_final_attn(queries + final)
    upscaled = decoder.output_upscaling(keys.transpose(1, 2).reshape(embeddings.shape))
    weights = [mlp(queries[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps)]
    weights = torch.stack(weights, dim=1).view(images, -1, upscaled.shape[1])
    logits = (weights @ upscaled.flatten(2)).view(len(sparse), -1, LOW, LOW)
    return logits, decoder.iou_prediction_head(queries[:, 0]), upscaled


def best_linear(upscaled: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits (B * P, 1, h, w) of the best linear read-out of each target from the up-sampled image.

    upscaled: (B, c, h, w). target: (B * P, 1, h, w) in [0, 1]. Ridge regression to
    +-4 with `pixel_weights`: what the hyper-networks should find.
    """
    images, channels = upscaled.shape[:2]
    pixels = upscaled.flatten(2).transpose(1, 2)  # (B, n, c)
    target = target.reshape(images, -1, pixels.shape[1])  # (B, P, n)
    weights = pixel_weights(target)
    squares = (pixels[..., None] * pixels[..., None, :]).flatten(2)  # (B, n, c * c)
    gram = (weights @ squares).unflatten(-1, (channels, channels))
    ridge = 0.003 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(channels)
    solution = torch.linalg.solve(gram + ridge, ((8 * target - 4) * weights @ pixels)[..., None])[..., 0]
    return (solution @ pixels.transpose(1, 2)).reshape(-1, 1, *upscaled.shape[2:])


def pixel_weights(target: torch.Tensor) -> torch.Tensor:
    """Weights that sum to 1 over the last axis, the inside's share being the root of its area's share."""
    inside, outside = (part.sum(-1, keepdim=True).clamp(min=1) for part in (target, 1 - target))
    share = (inside / target.shape[-1]).sqrt()
    return share * target / inside + (1 - share) * (1 - target) / outside


@torch.no_grad()
def look_at_the_prompt(sam: nn.Module) -> None:
    """Initial weights with which the mask tokens already hold what the image shows at the prompt.

    Half of the channels are left to position: the image starts without content in
    them, and prompts attend to the image by them alone, with a kernel peaked at the
    prompt. What they see is copied in the other half. Self-attention starts as a
    mean over the tokens, which brings it to the mask tokens. Attention from the
    image to the prompts starts at zero, so that the full decoder starts as the
    shared one.
    """
    sines = torch.arange(WIDTH // 4)
    place = torch.stack([sines, sines + WIDTH // 2], 1).flatten()  # sine and cosine of a frequency side by side
    content = torch.tensor([k for k in range(WIDTH) if k not in place.tolist()])
    identity = torch.eye(WIDTH)

    encoder, prompts, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
    prompts.pe_layer.positional_encoding_gaussian_matrix.mul_(2.0)
    small = [*prompts.point_embeddings, prompts.not_a_point_embed, prompts.no_mask_embed]
    for embedding in (*small, decoder.iou_token, decoder.mask_tokens):
        embedding.weight.mul_(0.1)
    layers = decoder.transformer.layers
    for norm in (encoder.layers[-1], *(layer.norm4 for layer in layers)):
        norm.weight[place] = 0.0
    looks = [layer.cross_attn_token_to_image for layer in layers]
    for look in (*looks, decoder.transformer.final_attn_token_to_image):
        look.q_proj.weight.copy_(1.3 * identity[place])
        look.k_proj.weight.copy_(1.3 * identity[place])
        look.v_proj.weight.copy_(identity[content])
        look.out_proj.weight.copy_(identity[:, content])
    for layer in layers:
        layer.self_attn.q_proj.weight.zero_()
        layer.self_attn.v_proj.weight.copy_(identity)
        layer.self_attn.out_proj.weight.copy_(identity)
        layer.cross_attn_image_to_token.out_proj.weight.zero_()
        layer.cross_attn_image_to_token.out_proj.bias.zero_()
    # logits of the size of 1, and a channel that can serve as the read-out's constant
    decoder.output_upscaling[-2].weight.mul_(4)
    decoder.output_upscaling[-2].bias[0] = 1.0
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--shared-steps", type=int, default=1000, help="with the cheaper decoder, first")
    parser.add_argument("--steps", type=int, default=6000, help="the shared ones included")
    parser.add_argument("--images", type=int, default=8, help="per step")
    parser.add_argument("--prompts", type=int, default=4, help="per image; twice as many in the shared steps")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(0)
    started = time.time()
    with Pool(options.workers) as pool:
        scenes = pool.map(prepare_scene, [(*SEED, k) for k in range(options.scenes)], chunksize=8)
        tests = pool.map(draw_scene, [(*score_sam.SEED, k) for k in range(40)], chunksize=8)
    print(f"{len(scenes)} scenes drawn in {time.time() - started:.0f} s", flush=True)

    sam = build_embedded_sam()
    look_at_the_prompt(sam)
    sam.image_encoder.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(sam.parameters(), lr=1e-3, weight_decay=0.01)

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / options.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    sampler, log, first = Sampler(scenes), [], 0
    unfinished = options.out.with_suffix(".state")
    decides = {key: value for key, value in vars(options).items() if key not in ("out", "workers")}
    made_of = fingerprint(
        decides, code_of(sys.modules[__name__], canvas, classes, objects, scenes_module, embedded, decoder)
    )
    if unfinished.exists():
        state = torch.load(unfinished, weights_only=True)
        if state["made_of"] != made_of:
            raise SesamError(f"{unfinished} is of a training with other options or code. Delete it to start anew.")
        sam.load_state_dict(state["sam"])
        started -= state["seconds"]
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    for step in range(first, options.steps):
        sam.train()
        rng = np.random.default_rng((1, step))
        shared = step < options.shared_steps
        prompts = 2 * options.prompts if shared else options.prompts
        kind = "points" if shared else rng.choice(("points", "box", "mask"), p=(0.8, 0.1, 0.1))
        count = int(rng.choice((1, 2, 3, 5, 8), p=(0.1, 0.1, 0.1, 0.6, 0.1)))
        photos, targets, points = sampler.batch(rng, options.images, prompts, count)
        embeddings = sam.image_encoder((photos - sam.pixel_mean) / sam.pixel_std)
        sparse, dense = encode_prompts(sam, kind, torch.from_numpy(points), targets, rng)
        soft = F.avg_pool2d(targets.float()[:, None], 2)  # (N, 1, 128, 128)
        if shared:
            logits, quality, upscaled = predict_shared(sam, embeddings, sparse)
            wanted = best_linear(upscaled[..., ::2, ::2], small := soft[..., ::2, ::2])
            weights = pixel_weights(small.flatten(2)).view_as(small)
            apart = (weights * (logits[..., ::2, ::2] - wanted.detach()) ** 2).sum((-2, -1)).mean()
            loss = region_loss(wanted, small).mean() + 0.1 * apart
        else:
            logits, quality = predict_masks(sam, embeddings.repeat_interleave(prompts, 0), sparse, dense)
            loss = 0.0
        losses, iou = region_loss(logits, soft), overlap(logits.detach(), soft)
        loss = loss + losses[:, 0].mean() * 0.5 + losses[:, 1:].min(1).values.mean() + F.mse_loss(quality, iou)
        log.append(float(iou[:, 1:].max(1).values.mean()))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            linear = f" (best linear {float(overlap(wanted, small).mean()):.3f})" if shared else ""
            minutes = (time.time() - started) / 60
            print(f"step {step + 1}: IoU {np.mean(log[-50:]):.3f}{linear}, {minutes:.1f} min", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == options.steps:
            report = score_sam.score(SamSegmenter(sam, torch.device("cpu")), tests)
            report |= {"steps": step + 1, "minutes": round((time.time() - started) / 60, 1)}
            print(json.dumps(report), flush=True)
            half = {k: v.half() if v.is_floating_point() else v for k, v in sam.state_dict().items()}
            state = {"sam": sam.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
            state |= {"made_of": made_of, "seconds": time.time() - started}
            for path, value in ((options.out, half), (unfinished, state | {"step": step + 1})):
                with whole(path) as beside:
                    torch.save(value, beside)
    unfinished.unlink()


if __name__ == "__main__":
    run_stage(main)
