"""Step 3 of the method: SAM's three candidate masks, with predicted IoU, for every component's prompt."""

from __future__ import annotations

from functools import partial

from sesam.artifacts.atomic_io import whole_folder
from sesam.artifacts.fingerprint import made_of
from sesam.artifacts.manifest import Dataset
from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.execution.pipeline import batch_size, batches_of, run
from sesam.paths import of_round
from sesam.sam.cache import EmbeddingCache, cache_folder, engine
from sesam.sam.candidates import steps
from sesam.sam.registry import model_named


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset, cache = Dataset.load(), EmbeddingCache(engine(params.sam), cache_folder(params.runtime))
    with whole_folder(of_round(name, "masks"), made_of("sam_masks", name), packed=True) as folder:
        missing = {item for item in dataset.train if not (folder / f"{item.id}.json").exists()}
        if len(missing) < len(dataset.train):
            print(f"sam_masks {name}: {len(dataset.train) - len(missing)} images are done already")
        keep, _ = cache.room_for(dataset.train, model_named(params.sam.model).embedding_bytes, params.runtime.cache_gb)
        batches = batches_of(dataset.train, missing.__contains__, batch_size(params.runtime))
        load = partial(steps, params, of_round(name, "prompts"), folder, cache, keep)
        run(batches, load, params.runtime, f"sam_masks {name}")


if __name__ == "__main__":
    run_stage(main)
