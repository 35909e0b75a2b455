"""SAM's image encoder over every training image, once for all rounds and prompts.

The artefact is an index, data/embeddings.json; the embeddings themselves lie in a
cache, usually beside it, that may be deleted at any time.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.manifest import Dataset, Item, item_image
from sesam.errors import run_stage
from sesam.execution.pipeline import Steps, batch_size, batches_of, run
from sesam.params import Params, load_params
from sesam.paths import EMBEDDINGS
from sesam.sam.cache import EmbeddingCache, cache_folder, engine
from sesam.sam.checkpoints import load_segmenter, weights_of
from sesam.sam.registry import model_named
from sesam.sam.segmenter import Fit, Segmenter


def read(item: Item, fit: Fit) -> tuple[Item, Tensor]:
    return item, fit(item_image(item))


def compute(loaded: list[tuple[Item, Tensor]], segmenter: Segmenter) -> list[tuple[Item, np.ndarray]]:
    items, images = zip(*loaded, strict=True)
    return [(item, made.numpy()) for item, made in zip(items, segmenter.encode(images), strict=True)]


def steps(params: Params, cache: EmbeddingCache) -> Steps:
    segmenter = load_segmenter(params)
    computing = partial(compute, segmenter=segmenter)
    return Steps(partial(read, fit=segmenter.fit), computing, cache.save, segmenter.device)


def main() -> None:
    params, dataset = load_params(), Dataset.load()
    made_by = engine(params.sam)
    cache = EmbeddingCache(made_by, cache_folder(params.runtime))
    if any(item not in cache for item in dataset.train):
        each = model_named(params.sam.model).embedding_bytes
        keep, lines = cache.room_for(dataset.train, each, params.runtime.cache_gb)
        for line in lines:
            print(f"embed: {line}", flush=True)
        if keep:
            batches = batches_of(dataset.train, lambda item: item not in cache, batch_size(params.runtime))
            run(batches, partial(steps, params, cache), params.runtime, "embed")
    images = {item.id: item.sha256 for item in dataset.train}
    write_json(
        EMBEDDINGS.with_suffix(".json"), {"engine": made_by, "weights": weights_of(params.sam)[1], "images": images}
    )


if __name__ == "__main__":
    run_stage(main)
