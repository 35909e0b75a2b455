"""Images per second of SAM 2.1, SAM 3's tracker and HQ-SAM: transformers, image by image with an image's prompts in one
call as its documentation shows, against the stage `sam_masks`, without and with cached embeddings.

    python -m benchmarks.sam_families --model sam2_tiny
    python -m benchmarks.sam_families --model sam2_large --images 64      # on a GPU
    python -m benchmarks.sam_families --model sam3_tracker --dtype bfloat16      # a CPU that has products of this type

Weights are random, in the published sizes, and the masks discs. Both sides are processes of their own, one after the
other, on the same images, which lie on disk as PNG. transformers' reads an image and makes its masks, in float32; ours
also writes them, and encodes in `--dtype`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.sam_engine import agreement, in_process, make_inputs, save_masks
from sesam.artifacts.atomic_io import read_json
from sesam.artifacts.component_records import read_prompts
from sesam.artifacts.image_io import read_image
from sesam.artifacts.manifest import ImageRecord
from sesam.execution.batches import BatchSteps, pending_batches, run_batches
from sesam.geometry.rle import mask_to_rle
from sesam.params import Runtime, SamParams
from sesam.sam import inference
from sesam.sam.cache import EmbeddingCache
from sesam.sam.decoder import ImageMaps
from sesam.sam.huggingface import FAMILIES, HuggingFaceSam

LARGE = {
    "hidden_size": 144,
    "num_attention_heads": 2,
    "blocks_per_stage": [2, 6, 36, 4],
    "embed_dim_per_stage": [144, 288, 576, 1152],
    "num_attention_heads_per_stage": [2, 4, 8, 16],
    "window_size_per_stage": [8, 4, 16, 8],
    "global_attention_blocks": [23, 33, 43],
}
VISION = {  # what differs from the defaults of transformers' configs, which are published sizes too
    "sam2_tiny": {},
    "sam2_large": {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **LARGE},
        "backbone_channel_list": [1152, 576, 288, 144],
    },
    "sam3_tracker": {},
    "sam_hq_b": {},
}
CLASSES = {"sam2": "Sam2", "sam3_tracker": "Sam3Tracker", "sam_hq": "SamHQ"}
POINTS = ("input_points", "input_labels")


def make_model(name: str) -> Any:
    classes = next(classes for prefix, classes in CLASSES.items() if name.startswith(prefix))
    torch.manual_seed(0)
    config = getattr(transformers, f"{classes}Config")(**({"vision_config": VISION[name]} if VISION[name] else {}))
    return getattr(transformers, f"{classes}Model")(config).eval()


def discs(side: int) -> torch.Tensor:
    """(3, side, side), which added to the masks of random weights makes them discs of three sizes."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    away = ((y - side / 4) ** 2 + (x - side / 2) ** 2).sqrt()
    return torch.stack([side * ratio - away for ratio in (0.05, 0.1, 0.2)])


class WithDiscs(HuggingFaceSam):
    """With discs instead of what random weights find."""

    def logits(self, maps: ImageMaps, prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        masks, quality = super().logits(maps, prompts)
        return masks + discs(4 * self.cells[0])[:, : masks.shape[2], : masks.shape[3]].to(masks), quality


def make_ours(options: argparse.Namespace, runtime: Runtime | None) -> WithDiscs:
    family = next(family for prefix, family in FAMILIES.items() if options.model.startswith(prefix))
    sam = SamParams(model="sam2", dtype=options.dtype)
    return WithDiscs(make_model(options.model), family, torch.device(options.device), sam, runtime)


def loop(options: argparse.Namespace, items: list[ImageRecord], folder: Path) -> dict[str, float]:
    """As transformers' documentation shows it; masks of the first image to a file, for the agreement."""
    model, sam_model = make_model(options.model).to(options.device), make_ours(options, None)
    classes = next(classes for prefix, classes in CLASSES.items() if options.model.startswith(prefix))
    processor = getattr(transformers, f"{classes}Processor")(image_processor=sam_model.processor)
    processor.target_size = sam_model.side
    objects = discs(4 * sam_model.cells[0]).to(options.device)
    model.mask_decoder.register_forward_hook(lambda _module, _inputs, out: (out[0] + objects, *out[1:]))
    del sam_model
    items = items[: options.peer_images]
    started = time.perf_counter()
    for item in items:
        image = read_image(Path(item.image))
        prompts = inference.component_prompts(read_prompts(folder / "prompts" / f"{item.id}.json", item))
        points = [prompt.points.tolist() for prompt in prompts if prompt.points is not None]
        if classes == "SamHQ":  # its processor takes no prompts of different numbers of points
            points = [(one * options.points)[: options.points] for one in points]
        labels = [[1] * len(one) for one in points]
        inputs = processor(images=image, input_points=[points], input_labels=[labels], return_tensors="pt")
        arguments = {name: inputs[name].to(options.device) for name in ("pixel_values", *POINTS)}
        with torch.inference_mode():
            out = model(**arguments, multimask_output=True)
        resized = [inputs["reshaped_input_sizes"]] if "reshaped_input_sizes" in inputs else []
        (masks,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"], *resized)
        masks = masks.flatten(0, 1).cpu().numpy()
        if item is items[0]:
            save_masks(folder / "loop.json", [mask_to_rle(mask) for mask in masks])
    return {"whole": len(items) / (time.perf_counter() - started)}


def ours(options: argparse.Namespace, items: list[ImageRecord], folder: Path) -> dict[str, float]:
    """The stage's own read, compute and write; then again with all embeddings cached."""
    runtime = Runtime(
        device=options.device,
        backend="local",
        num_workers=options.workers,
        encoder_batch_size=8,
        compile=False,
        embedding_cache=None,
        embedding_cache_gb=1e3,
        training_gpus=1,
        launcher="torchrun",
    )
    sam_model, cache = make_ours(options, runtime), EmbeddingCache("0" * 64, folder / "embeddings")
    steps = BatchSteps(
        partial(inference.read_prompted, prompts=folder / "prompts", cache=cache, preprocess=sam_model.preprocess),
        partial(inference.decode_prompts, sam_model=sam_model),
        partial(inference.write_masks, folder=folder / "masks", cache=cache),
        sam_model.device,
    )
    rates = {}
    for name in ("whole", "cached"):
        started = time.perf_counter()
        batches = pending_batches(items, lambda item: True, sam_model.image_batcher.batch_size)
        run_batches(batches, lambda: steps, runtime, "benchmark")
        rates[name] = len(items) / (time.perf_counter() - started)
    found = read_json(folder / "masks" / "0.json")["components"]
    save_masks(folder / "ours.json", [one["rle"] for three in found for one in three["candidates"]])
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=VISION, nargs="+", default=[*VISION])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--peer-images", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--workers", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    size = options.size[0], options.size[1]
    print("| model | transformers, images/s | ours | ratio | cached | ratio | memory, GiB | equal pixels |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for model in options.model:
        options.model = model
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            items = make_inputs(folder, options.images, options.prompts, options.points, size)
            peer = in_process(partial(loop, options, items, folder), options.device, huge_pages=False)
            own = in_process(partial(ours, options, items, folder), options.device, huge_pages=True)
            equal, _ = agreement(read_json(folder / "ours.json"), read_json(folder / "loop.json"), size)
        cells = [f"{peer['whole']:.3f}"]
        cells += [
            part for key in ("whole", "cached") for part in (f"{own[key]:.3f}", f"{own[key] / peer['whole']:.2f}")
        ]
        memory = f"{own['memory']:.1f}, transformers {peer['memory']:.1f}"
        print(f"| {model} | {' | '.join(cells)} | {memory} | {equal:.5f} |", flush=True)


if __name__ == "__main__":
    main()
