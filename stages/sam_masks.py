"""Step 3 of the method: SAM's three candidate masks, with predicted IoU, for every component's prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from stages.common import regions
from stages.common.dataset import Dataset, Item
from stages.common.device import pick_device
from stages.common.errors import SesamError, run_stage
from stages.common.files import code_of, fingerprint, read_json, write_json
from stages.common.parallel import progress
from stages.common.params import round_of_command_line
from stages.common.regions import decode_mask, encode_mask
from stages.sam.cache import EmbeddingCache
from stages.sam.models import MODELS, Prompt, Segmenter, check_checkpoint, engine_fingerprint


def component_prompts(document: dict[str, Any]) -> list[Prompt]:
    """The prompts of an image's JSON, in the components' order."""
    shape = (document["height"], document["width"])
    read = {
        "points": lambda component: Prompt(points=np.array(component["points"])),
        "box": lambda component: Prompt(box=np.array(component["box"])),
        "mask": lambda component: Prompt(mask=decode_mask(component["rle"], shape)),
    }[document["prompt"]]
    return [read(component) for component in document["components"]]


def candidates(segmenter: Segmenter, embedding: np.ndarray, document: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """For each component its candidates: COCO run lengths and predicted IoU."""
    shape = (document["height"], document["width"])
    decoded = segmenter.decode(embedding, shape, component_prompts(document))
    return [
        [{"iou": round(float(iou), 5), "rle": encode_mask(mask)} for mask, iou in zip(masks, quality, strict=True)]
        for masks, quality in decoded
    ]


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset = Dataset.load()
    checkpoint = Path(params.sam.checkpoint)
    engine = engine_fingerprint(params.sam.model, check_checkpoint(params.sam.model, checkpoint))
    folder = Path(f"data/rounds/{name}/masks")

    # DVC leaves earlier masks in place: those that the same prompts, image, weights and code made are kept
    code = code_of(sys.modules[__name__], regions)
    todo: dict[Item, tuple[dict, str]] = {}
    paths = {folder / f"{item.id}.json" for item in dataset.train}
    for stale in [path for path in folder.rglob("*.json") if path not in paths]:
        stale.unlink()
    for item in dataset.train:
        document = read_json(Path(f"data/rounds/{name}/prompts/{item.id}.json"))
        made_of = fingerprint(engine, code, item.sha256, document)
        if _fingerprint_of(folder / f"{item.id}.json") != made_of:
            todo[item] = (document, made_of)
    if len(todo) < len(dataset.train):
        print(f"sam_masks {name}: {len(dataset.train) - len(todo)} images are done already")
    if not todo:
        return

    segmenter = MODELS[params.sam.model].load(checkpoint, pick_device(params.runtime))
    cache = EmbeddingCache(engine)
    with progress(len(todo), f"sam_masks {name}") as bar:
        for item, (document, made_of) in todo.items():
            embedding = cache.load(item)
            if embedding is None:
                embedding = cache.compute(segmenter, item)
            found = candidates(segmenter, embedding, document)
            size = {"height": item.height, "width": item.width}
            write_json(folder / f"{item.id}.json", {"id": item.id, **size, "fingerprint": made_of, "candidates": found})
            bar.update()


def _fingerprint_of(path: Path) -> str | None:
    try:
        return read_json(path).get("fingerprint")
    except SesamError:  # missing or damaged: to be made
        return None


if __name__ == "__main__":
    run_stage(main)
