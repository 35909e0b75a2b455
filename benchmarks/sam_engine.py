"""Images per second of SAM inference: segment-anything's SamPredictor, image by image and prompt by prompt,
against the stage `sam_masks`, each step of the speed-up switched on in turn.

    python -m benchmarks.sam_engine                                   # ViT-B on a CPU
    python -m benchmarks.sam_engine --model vit_h --images 256 --peer-images 8      # on a GPU

Weights are random unless --checkpoint names some, and the masks then discs. Every row is a process of its own, one
after the other, on the same images, which lie on disk as PNG. The peers' rows read an image and make its masks; ours
also write them. Memory is that of the process that computes, without those that read and write. On a GPU
segment-anything-fast's recipe is a peer too, without what changes the weights (int8, 2:4).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sesam.artifacts.atomic_io import json_digest, read_json, sha256, write_json
from sesam.artifacts.component_records import read_prompts
from sesam.artifacts.image_io import read_image
from sesam.artifacts.manifest import ImageRecord
from sesam.demo.scenes import draw_scene
from sesam.execution.batches import BatchSteps, pending_batches, run_batches
from sesam.geometry.regions import connected_regions
from sesam.geometry.rle import counts_to_rle, mask_to_rle, rle_to_mask
from sesam.params import Runtime, SamplingParams
from sesam.prompting import sample_points
from sesam.sam import inference
from sesam.sam.batched_sam import BatchedSam, ImagePrompt
from sesam.sam.bundled import build_bundled_sam
from sesam.sam.cache import EmbeddingCache
from sesam.sam.decoder import ImageMaps
from sesam.sam.sam_model import MaskPredictions
from sesam.sam.upscaling import rows_to_counts

BUILD = {"bundled": build_bundled_sam, **sam_model_registry}
LOOPS = {"SamPredictor, float32": "float32", "SamPredictor, bfloat16 autocast": "bfloat16"}
RECIPE = "segment-anything-fast's recipe, bfloat16"


class Measured(BatchedSam):
    """With discs instead of what random weights find."""

    objects: Tensor | None = None

    def logits(self, maps: ImageMaps, prompts: Sequence[ImagePrompt]) -> tuple[Tensor, Tensor]:
        masks, quality = super().logits(maps, prompts)
        if self.objects is not None:
            masks += self.objects[:, : masks.shape[2], : masks.shape[3]]
        return masks, quality


class WholeMasks(Measured):
    """Without the step `tiles`: segment-anything scales whole masks up, one prompt at a time."""

    def _decode(self, maps: ImageMaps, prompts: Sequence[ImagePrompt]) -> list[MaskPredictions]:
        logits, quality = self.logits(maps, prompts)
        low = 4 * np.array(self.cells)
        found = []
        for k, prompt in enumerate(prompts):
            padded = torch.zeros(1, 3, *low, device=self.device)
            padded[..., : logits.shape[2], : logits.shape[3]] = logits[k]
            resized = self.resized(prompt.size)
            masks = self.sam.postprocess_masks(padded, resized, prompt.size)[0] > self.sam.mask_threshold
            flat = masks.transpose(1, 2).flatten(1).cpu().numpy()
            edges = [np.flatnonzero(np.diff(mask, prepend=False)) for mask in flat]
            counts = [np.diff(edge, prepend=0, append=flat.shape[1]) for edge in edges]
            found.append(MaskPredictions(counts, quality[k].cpu().numpy()))
        return found


def make_inputs(folder: Path, count: int, prompts: int, points: int, size: tuple[int, int]) -> list[ImageRecord]:
    """Drawn scenes of `size` (height, width) as PNG, and for each its prompts as the stage `prompts` writes them.

    Points lie on the skeletons of the scene's components, as in use, so that trained weights make masks of objects.
    """
    rng = np.random.default_rng(0)
    sampling = SamplingParams(prompt_type="points", strategy="skeleton", num_points=points)
    rle = mask_to_rle(np.ones(size, bool))
    scenes = []
    for k in range(min(count, 8)):
        scene = draw_scene((5, k))
        regions = cycle(region for _, region in connected_regions(scene.labels, min_area=64))
        scale = np.array(size[::-1]) / scene.labels.shape[::-1]
        nowhere = np.zeros_like(scene.labels)  # the skeleton's points need no confidence
        spots = [sample_points(region, sampling, nowhere, rng) for region in islice(regions, prompts)]
        drawn = [
            {"number": number, "class": 0, "rle": rle, "points": (np.array(one) * scale).astype(int).tolist()}
            for number, one in enumerate(spots, 1)
        ]
        scenes.append((cv2.resize(scene.image, size[::-1], interpolation=cv2.INTER_CUBIC), drawn))

    def make(k: int) -> ImageRecord:
        image, path = scenes[k % 8][0].copy(), folder / f"{k}.png"
        image[0, 0] = k % 256, k // 256, 0
        cv2.imwrite(str(path), image[..., ::-1])
        document = {
            "id": str(k),
            "height": size[0],
            "width": size[1],
            "prompt": "points",
            "components": scenes[k % 8][1],
        }
        write_json(folder / "prompts" / f"{k}.json", document)
        return ImageRecord(str(k), str(path), *size, sha256(path))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(make, range(count)))


def make_sam(model: str, checkpoint: Path | None, device: torch.device) -> Sam:
    torch.manual_seed(0)
    with device:
        sam = BUILD[model]().to(device).eval()
    if checkpoint:
        sam.load_state_dict(torch.load(checkpoint, map_location=device, weights_only=True))
        return sam
    for table in (p for name, p in sam.named_parameters() if "rel_pos" in name or "pos_embed" in name):
        torch.nn.init.normal_(table, std=0.02)  # zeros as built
    return sam


def discs(sam: Sam) -> Tensor:
    """(3, h, w) float32, which added to the masks of random weights makes them discs of three sizes.

    They have edges as long as objects have; random weights alone make noise, whose run lengths would be measured.
    """
    h, w = (4 * n for n in sam.prompt_encoder.image_embedding_size)
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    away = ((y - h / 4) ** 2 + (x - w / 2) ** 2).sqrt()
    return torch.stack([(w * ratio - away) for ratio in (0.05, 0.1, 0.2)]).to(sam.device)


def make_predictor(options: argparse.Namespace) -> SamPredictor:
    sam = make_sam(options.model, options.checkpoint, torch.device(options.device))
    if not options.checkpoint:
        objects = discs(sam)
        sam.mask_decoder.register_forward_hook(lambda *call: (call[-1][0] + objects, call[-1][1]))
    return SamPredictor(sam)


def loop(precision: str, options: argparse.Namespace, items: list[ImageRecord], folder: Path) -> dict[str, float]:
    """SamPredictor as its authors show it; masks of the first image to a file, for the agreement."""
    device = torch.device(options.device)
    predictor = make_predictor(options)
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    items = items[: options.peer_images]

    def one(item: ImageRecord) -> tuple[float, float, float, list[np.ndarray]]:
        began = time.perf_counter()
        image = read_image(Path(item.image))
        started = time.perf_counter()
        predictor.set_image(image)
        _wait(device)
        encoded = time.perf_counter()
        masks = []
        for prompt in inference.component_prompts(read_prompts(folder / "prompts" / f"{item.id}.json", item)):
            # not predict(), which is this and then fails: NumPy has no bfloat16
            points = predictor.transform.apply_coords(prompt.points, predictor.original_size)
            points = torch.as_tensor(points, dtype=torch.float, device=device)[None]
            foreground = torch.ones(points.shape[:2], dtype=torch.int, device=device)
            masks.append(predictor.predict_torch(points, foreground)[0][0].cpu().numpy())
        return started - began, encoded - started, time.perf_counter() - encoded, masks

    with autocast:
        if device.type == "cuda":
            one(items[0])
        times = np.zeros(3)
        for k, item in enumerate(items):
            *seconds, masks = one(item)
            times += seconds
            if k == 0:
                save_masks(folder / f"{precision}.json", [mask_to_rle(mask) for three in masks for mask in three])
    _, encoder, decoder = len(items) / times
    return {"encoder": encoder, "decoder": decoder, "whole": len(items) / times.sum()}


def fused_attention(self: Attention, x: Tensor) -> Tensor:
    """`Attention.forward` with PyTorch's fused attention, the position bias as a matrix."""
    batch, height, width, channels = x.shape
    q, k, v = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    places = q.unflatten(2, (height, width))
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", places, get_rel_pos(height, height, self.rel_pos_h).to(q.dtype))
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", places, get_rel_pos(width, width, self.rel_pos_w).to(q.dtype))
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).reshape(batch, self.num_heads, height * width, -1)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))


def recipe(options: argparse.Namespace, items: list[ImageRecord], folder: Path) -> dict[str, float]:
    """What segment-anything-fast does to segment-anything, as far as the weights stay.

    Encoder in bfloat16, with fused attention, compiled, images in batches which threads read ahead; the decoder under
    autocast, an image's prompts in one call, its masks to run lengths together and on the device, by our function. Not
    autotuned: on an H100 that was stopped after four minutes.
    """
    device = torch.device(options.device)
    predictor = make_predictor(options)
    encoder = predictor.model.image_encoder.to(torch.bfloat16)
    Attention.forward = fused_attention
    for block in encoder.blocks:
        block.compile(dynamic=False)
    times = np.zeros(2)

    def read(item: ImageRecord) -> tuple[Tensor, list[np.ndarray]]:
        image = predictor.transform.apply_image(read_image(Path(item.image)))
        prompts = read_json(folder / "prompts" / f"{item.id}.json")["components"]
        return torch.from_numpy(image).permute(2, 0, 1), [np.array(prompt["points"]) for prompt in prompts]

    def work(batch: list[tuple[Tensor, list[np.ndarray]]]) -> list[list[np.ndarray]]:
        """The masks of every image as run lengths, in the prompts' order, three a prompt."""
        began = time.perf_counter()
        images = torch.stack([predictor.model.preprocess(image.to(device)) for image, _ in batch])
        whole = F.pad(images, (0, 0) * 3 + (0, options.batch - len(batch)))  # another size would be compiled again
        features = encoder(whole.to(torch.bfloat16))[: len(batch)].float()
        _wait(device)
        encoded = time.perf_counter()
        results: list[list[np.ndarray]] = []
        for one, (image, prompts) in zip(features, batch, strict=True):
            predictor.features, predictor.is_image_set = one[None], True
            predictor.original_size, predictor.input_size = tuple(options.size), tuple(image.shape[1:])
            results.append([np.empty(0)] * 3 * len(prompts))
            for many in {len(points) for points in prompts}:
                alike = [k for k, points in enumerate(prompts) if len(points) == many]
                points = np.stack([prompts[k] for k in alike])
                coords = predictor.transform.apply_coords_torch(torch.as_tensor(points, device=device), options.size)
                foreground = torch.ones(coords.shape[:2], dtype=torch.int, device=device)
                masks = predictor.predict_torch(coords, foreground)[0].flatten(0, 1)
                lengths = list(rows_to_counts(masks.transpose(1, 2).flatten(1)))
                for n, k in enumerate(alike):
                    results[-1][3 * k : 3 * k + 3] = lengths[3 * n : 3 * n + 3]
        times[:] += encoded - began, time.perf_counter() - encoded
        return results

    with ThreadPoolExecutor(options.workers) as pool, torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        first, *_ = work(list(pool.map(read, items[: options.batch])))  # compile
        times[:], started = 0, time.perf_counter()
        ahead = pool.map(read, items)
        for k in range(0, len(items), options.batch):
            work(list(islice(ahead, len(items[k : k + options.batch]))))
        whole = len(items) / (time.perf_counter() - started)
    save_masks(folder / "recipe.json", [counts_to_rle(one, tuple(options.size)) for one in first])
    encoder_rate, decoder_rate = len(items) / times
    return {"encoder": encoder_rate, "decoder": decoder_rate, "whole": whole}


def ours(steps: set[str], options: argparse.Namespace, items: list[ImageRecord], folder: Path) -> dict[str, float]:
    """The stage's own read, compute and write, without the steps that are not named."""
    device = torch.device(options.device)
    runtime = Runtime(
        device=options.device,
        backend="local",
        num_workers=options.workers,
        encoder_batch_size=options.batch,
        compile="compile" in steps,
        embedding_cache=None,
        embedding_cache_gb=1e3,
        training_gpus=1,
        launcher="torchrun",
    )
    sam = make_sam(options.model, options.checkpoint, device)
    kind = Measured if "tiles" in steps else WholeMasks
    sam_model = kind(sam, device, "bfloat16" if "bfloat16" in steps else "float32", runtime)
    sam_model.objects = None if options.checkpoint else discs(sam)
    if "attention" not in steps:
        sam_model.encoder = sam.image_encoder
    if "side by side" not in steps:
        sam_model.image_batcher.batch_size = 1
    cache = EmbeddingCache(json_digest(*sorted(steps)), folder / "embeddings")

    def rate(work: BatchSteps, count: int) -> float:
        batches = pending_batches(items[:count], lambda item: True, sam_model.image_batcher.batch_size)
        started = time.perf_counter()
        if "side by side" in steps:
            run_batches(batches, lambda: work, runtime, "benchmark")
        else:
            for batch in batches:
                for what in work.compute([work.read(item) for item in batch]):
                    work.write(*what)
        return count / (time.perf_counter() - started)

    masks = BatchSteps(
        partial(inference.read_prompted, prompts=folder / "prompts", cache=cache, preprocess=sam_model.preprocess),
        partial(inference.decode_prompts, sam_model=sam_model),
        partial(inference.write_masks, folder=folder / "masks", cache=None),
        device,
    )
    count = len(items) if "side by side" in steps or device.type == "cpu" else options.peer_images
    if device.type == "cuda":
        rate(masks, 2 * sam_model.image_batcher.batch_size)  # compile, choose kernels
    whole = rate(masks, count)
    found = read_json(folder / "masks" / "0.json")["components"]
    save_masks(folder / "ours.json", [one["rle"] for three in found for one in three["candidates"]])
    image = sam_model.preprocess(read_image(Path(items[0].image)))

    def encode(items: Sequence[ImageRecord]) -> list[tuple[ImageRecord]]:
        sam_model.encode([image] * len(items))
        return [(item,) for item in items]

    if device.type == "cuda":  # without the start of the worker processes
        together, started = sam_model.image_batcher.batch_size, time.perf_counter()
        for k in range(0, count, together):
            encode(items[k : k + together])
        encoder = count / (time.perf_counter() - started)
    else:
        encoder = rate(BatchSteps(_same, encode, _same, device), count)
    (embedding,) = sam_model.encode([image])
    for item in items[:count]:
        cache.save(item, embedding.numpy())
    return {"encoder": encoder, "decoder": rate(masks, count), "whole": whole}


def _same(item: ImageRecord) -> ImageRecord:
    return item


def save_masks(path: Path, masks: list[str]) -> None:
    path.write_text(json.dumps(masks))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _row(pipe: Any, work: Callable[[], dict[str, float]], device: str) -> None:
    multiprocessing.set_start_method(None, force=True)  # Python's own, not that of the process that started this one
    result = work()
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    if device == "cuda":
        result["device memory"] = torch.cuda.max_memory_allocated() / 2**30
    pipe.send(result)


def in_process(work: Callable[[], dict[str, float]], device: str, huge_pages: bool) -> dict[str, float]:
    """What `work` measures, with the peak of a fresh process' memory in GiB."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    # SamPredictor as a lab runs it; sesam/__init__.py sets this for ours
    os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(huge_pages))
    process = context.Process(target=_row, args=(send, work, device))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return result


def agreement(found: list[str], expected: list[str], size: tuple[int, int]) -> tuple[float, float]:
    """Share of equal pixels, and mean IoU, of masks."""
    equal, overlap = [], []
    for one, other in zip(found, expected, strict=True):
        a, b = rle_to_mask(one, size), rle_to_mask(other, size)
        equal.append((a == b).mean())
        overlap.append((a & b).sum() / max((a | b).sum(), 1) if (a | b).any() else 1.0)
    return float(np.mean(equal)), float(np.mean(overlap))


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP per second of the device's own matrix product."""
    side, together = (8192, 10) if device == "cuda" else (2048, 1)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10 if dtype == torch.float32 or device == "cuda" else 1):
        _wait(torch.device(device))
        started = time.perf_counter()
        for _ in range(together):
            a @ b
        _wait(torch.device(device))
        seconds.append(time.perf_counter() - started)
    return together * 2 * side**3 / min(seconds)


def encoder_work(model: str) -> float:
    """FLOP (two a multiply-add) of segment-anything's encoder for one image."""
    with torch.device("meta"):
        encoder = BUILD[model]().image_encoder
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(torch.empty(1, 3, encoder.img_size, encoder.img_size))
    return counter.get_total_flops()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUILD, default="vit_b")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--peer-images", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bfloat16", action="store_true", help="on a CPU too")
    parser.add_argument("--whole", action="store_true", help="not step by step: the peers and the whole stage alone")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    height, width = options.size
    size = (height, width)

    rows: list[tuple[str, partial[dict[str, float]], str]] = []
    bfloat16 = options.device == "cuda" or options.bfloat16
    for name, precision in LOOPS.items():
        if precision == "float32" or bfloat16:
            rows.append((name, partial(loop, precision), precision))
    gpu = options.device == "cuda"
    if gpu:
        rows.append((RECIPE, partial(recipe), "recipe"))
    ladder = ["prompts in batches", "tiles", "attention", *["huge pages"] * (not gpu)]
    ladder += [*["bfloat16"] * bfloat16, *["compile"] * gpu, "side by side"]
    for k, step in enumerate(ladder, 1):
        if k == len(ladder) or not options.whole:
            rows.append((f"+ {step}" if not options.whole else "the stage", partial(ours, set(ladder[:k])), "ours"))

    rates = {"float32": matrix_rate(options.device, torch.float32)}
    if bfloat16:
        rates["bfloat16"] = matrix_rate(options.device, torch.bfloat16)
    flop = encoder_work(options.model)
    print(f"{options.model} on {_name(options.device)}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}: ")
    print(f"{options.prompts} prompts of {options.points} points an image of {size[1]}x{size[0]}; ", end="")
    print(f"encoder {flop / 1e12:.3g} TFLOP an image; matrix product ", end="")
    print(", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in rates.items()), "\n")
    head = [
        "",
        "encoder",
        "share of matrix rate",
        "decoder",
        "whole",
        "times",
        "memory GiB",
        "equal pixels",
        "mean IoU",
    ]
    print(" | ".join(["", *head, ""]).strip())
    print("|" + " --- |" * len(head))
    baseline = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        items = make_inputs(folder, options.images, options.prompts, options.points, size)
        for name, measure, masks in rows:
            steps = measure.args[0] if measure.func is ours else set()
            work = partial(measure, options, items, folder)
            found = in_process(work, options.device, "huge pages" in steps)
            baseline = baseline or found["whole"]
            made, plain = (json.loads((folder / f"{x}.json").read_text()) for x in (masks, "float32"))
            same = agreement(made, plain, size)
            rate = rates["bfloat16" if "bfloat16" in name or "bfloat16" in steps else "float32"]
            memory = f"{found['memory']:.2f}" + (f" + {found['device memory']:.1f}" if "device memory" in found else "")
            figures = [f"{found['encoder']:.3g}", f"{found['encoder'] * flop / rate:.0%}", f"{found['decoder']:.3g}"]
            figures += [f"{found['whole']:.3g}", f"{found['whole'] / baseline:.2f}", memory]
            print("|", " | ".join([name, *figures, f"{same[0]:.6f}", f"{same[1]:.4f}"]), "|", flush=True)
        print(f"| embeddings cached | | | | {found['decoder']:.3g} | {found['decoder'] / baseline:.2f} | | | |")


def _name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{torch.get_num_threads()} cores of {model[0].split(':')[1].strip() if model else 'a CPU'}"


if __name__ == "__main__":
    main()
