"""SAM's image encoder over every training image, once for all rounds and prompts.

The artifact is an index, data/embeddings.json; the embeddings themselves lie in a
cache, usually beside it, that may be deleted at any time.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.manifest import Dataset, ImageRecord, load_image
from sesam.errors import run_main
from sesam.execution.pipeline import PipelineSteps, batch_size, pending_batches, run_pipeline
from sesam.params import Params, load_params
from sesam.paths import EMBEDDINGS
from sesam.sam.cache import EmbeddingCache, cache_dir, engine_fingerprint
from sesam.sam.checkpoints import load_segmenter, resolve_weights
from sesam.sam.registry import get_model
from sesam.sam.segmenter import Preprocess, Segmenter


def read(item: ImageRecord, fit: Preprocess) -> tuple[ImageRecord, Tensor]:
    return item, fit(load_image(item))


def compute(loaded: list[tuple[ImageRecord, Tensor]], segmenter: Segmenter) -> list[tuple[ImageRecord, np.ndarray]]:
    items, images = zip(*loaded, strict=True)
    return [(item, made.numpy()) for item, made in zip(items, segmenter.encode(images), strict=True)]


def steps(params: Params, cache: EmbeddingCache) -> PipelineSteps:
    segmenter = load_segmenter(params)
    computing = partial(compute, segmenter=segmenter)
    return PipelineSteps(partial(read, fit=segmenter.preprocess), computing, cache.save, segmenter.device)


def main() -> None:
    params, dataset = load_params(), Dataset.load()
    made_by = engine_fingerprint(params.sam)
    cache = EmbeddingCache(made_by, cache_dir(params.runtime))
    if any(item not in cache for item in dataset.train):
        each = get_model(params.sam.model).embedding_bytes
        keep, lines = cache.reserve(dataset.train, each, params.runtime.embedding_cache_gb)
        for line in lines:
            print(f"embed: {line}", flush=True)
        if keep:
            batches = pending_batches(dataset.train, lambda item: item not in cache, batch_size(params.runtime))
            run_pipeline(batches, partial(steps, params, cache), params.runtime, "embed")
    images = {item.id: item.sha256 for item in dataset.train}
    write_json(
        EMBEDDINGS.with_suffix(".json"),
        {"engine": made_by, "weights": resolve_weights(params.sam)[1], "images": images},
    )


if __name__ == "__main__":
    run_main(main)
