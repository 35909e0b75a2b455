"""Step 3 of the method: SAM's three candidate masks, with predicted IoU, for every component's prompt."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from stages.common import regions
from stages.common.dataset import Dataset, Item
from stages.common.errors import SesamError, run_stage
from stages.common.files import code_of, fingerprint, read_json, write_json
from stages.common.images import read_image
from stages.common.masks import decode_mask, encode_counts
from stages.common.params import round_of_command_line
from stages.sam.cache import EmbeddingCache
from stages.sam.engine import fit
from stages.sam.models import MODELS, engine_fingerprint, load_segmenter
from stages.sam.pipeline import batches_of, run
from stages.sam.segmenter import Candidates, Prompt, Segmenter


def component_prompts(document: dict[str, Any]) -> list[Prompt]:
    """The prompts of an image's JSON, in the components' order."""
    shape = (document["height"], document["width"])
    read = {
        "points": lambda component: Prompt(points=np.array(component["points"])),
        "box": lambda component: Prompt(box=np.array(component["box"])),
        "mask": lambda component: Prompt(mask=decode_mask(component["rle"], shape)),
    }[document["prompt"]]
    return [read(component) for component in document["components"]]


class Loaded(NamedTuple):
    """An image as it is read: its prompts, and its embedding or, if that is not cached, the image itself."""

    item: Item
    made_of: str
    prompts: list[Prompt]
    embedding: Tensor | None
    image: Tensor | None


def read(job: tuple[Item, str], prompts: Path, cache: EmbeddingCache, side: int) -> Loaded:
    item, made_of = job
    embedding = cache.load(item)
    image = fit(read_image(Path(item.image)), side) if embedding is None else None
    return Loaded(item, made_of, component_prompts(read_json(prompts / f"{item.id}.json")), embedding, image)


def compute(loaded: list[Loaded], segmenter: Segmenter) -> list[tuple]:
    """What `write` takes, for each image."""
    new = iter(segmenter.encode([one.image for one in loaded if one.image is not None]))
    fresh = [next(new) if one.embedding is None else None for one in loaded]
    embeddings = [one.embedding if made is None else made for one, made in zip(loaded, fresh, strict=True)]
    sizes = [(one.item.height, one.item.width) for one in loaded]
    found = segmenter.decode(embeddings, sizes, [one.prompts for one in loaded])
    kept = [None if made is None else made.numpy() for made in fresh]
    return [(one.item, one.made_of, *rest) for one, *rest in zip(loaded, found, kept, strict=True)]


def write(
    item: Item,
    made_of: str,
    found: list[Candidates],
    fresh: np.ndarray | None,
    folder: Path,
    cache: EmbeddingCache | None,
) -> None:
    """An image's candidates as JSON: COCO run lengths and predicted IoU; a new embedding to the cache."""
    if cache and fresh is not None:
        cache.save(item, fresh)
    shape = (item.height, item.width)
    candidates = [
        [
            {"iou": round(float(iou), 5), "rle": encode_counts(counts, shape)}
            for counts, iou in zip(one.counts, one.iou, strict=True)
        ]
        for one in found
    ]
    size = {"height": item.height, "width": item.width}
    write_json(folder / f"{item.id}.json", {"id": item.id, **size, "fingerprint": made_of, "candidates": candidates})


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset = Dataset.load()
    engine = engine_fingerprint(params.sam)
    prompts, folder = Path(f"data/rounds/{name}/prompts"), Path(f"data/rounds/{name}/masks")

    # DVC leaves earlier masks in place: those that the same prompts, image, weights and code made are kept
    code = code_of(sys.modules[__name__], regions)
    paths = {folder / f"{item.id}.json" for item in dataset.train}
    for stale in [path for path in folder.rglob("*.json") if path not in paths]:
        stale.unlink()
    jobs = []
    for item in dataset.train:
        document = read_json(prompts / f"{item.id}.json")
        jobs.append((item, fingerprint(engine, code, item.sha256, document)))
    todo = {job for job in jobs if _fingerprint_of(folder / f"{job[0].id}.json") != job[1]}
    if len(todo) < len(jobs):
        print(f"sam_masks {name}: {len(jobs) - len(todo)} images are done already")
    if not todo:
        return

    segmenter, cache = load_segmenter(params), EmbeddingCache(engine)
    keep, _ = cache.room_for(dataset.train, MODELS[params.sam.model].embedding_bytes, params.runtime.cache_gb)
    reading = partial(read, prompts=prompts, cache=cache, side=segmenter.side)
    writing = partial(write, folder=folder, cache=cache if keep else None)
    batches = batches_of(jobs, todo.__contains__, segmenter.batch)
    run(
        batches,
        reading,
        partial(compute, segmenter=segmenter),
        writing,
        segmenter.device,
        params.runtime,
        f"sam_masks {name}",
    )


def _fingerprint_of(path: Path) -> str | None:
    try:
        return read_json(path).get("fingerprint")
    except SesamError:  # missing or damaged: to be made
        return None


if __name__ == "__main__":
    run_stage(main)
