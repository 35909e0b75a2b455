"""Step 3 of the method: SAM's three candidate masks, with predicted IoU, for every component's prompt."""

from __future__ import annotations

from functools import partial

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.fingerprint import stage_fingerprint
from sesam.artifacts.manifest import Dataset
from sesam.errors import run_main
from sesam.execution.pipeline import batch_size, pending_batches, run_pipeline
from sesam.params import parse_round
from sesam.paths import round_dir
from sesam.sam.cache import EmbeddingCache, cache_dir, engine_fingerprint
from sesam.sam.candidates import steps
from sesam.sam.registry import get_model


def main() -> None:
    name, params = parse_round(__doc__)
    dataset, cache = Dataset.load(), EmbeddingCache(engine_fingerprint(params.sam), cache_dir(params.runtime))
    with atomic_directory(round_dir(name, "masks"), stage_fingerprint("sam_masks", name), packed=True) as folder:
        missing = {item for item in dataset.train if not (folder / f"{item.id}.json").exists()}
        if len(missing) < len(dataset.train):
            print(f"sam_masks {name}: {len(dataset.train) - len(missing)} images are done already")
        keep, _ = cache.reserve(
            dataset.train, get_model(params.sam.model).embedding_bytes, params.runtime.embedding_cache_gb
        )
        batches = pending_batches(dataset.train, missing.__contains__, batch_size(params.runtime))
        load = partial(steps, params, round_dir(name, "prompts"), folder, cache, keep)
        run_pipeline(batches, load, params.runtime, f"sam_masks {name}")


if __name__ == "__main__":
    run_main(main)
