"""SAM's image encoder over every training image, once for all rounds and prompts.

The artifact is an index, data/embeddings.json. The embeddings are in a cache, by default data/embeddings/, which may
be deleted at any time. If `sam.enabled` is false, nothing is encoded and the index is empty.
"""

from functools import partial

from sesam.artifacts.atomic_io import write_json
from sesam.artifacts.manifest import Manifest
from sesam.errors import run_main
from sesam.execution.batches import batch_size, pending_batches, run_batches
from sesam.params import load_params
from sesam.paths import EMBEDDINGS
from sesam.sam.cache import open_cache
from sesam.sam.checkpoints import resolve_weights
from sesam.sam.inference import make_embed_steps


def main() -> None:
    params, index = load_params(), EMBEDDINGS.with_suffix(".json")
    if not params.sam.enabled:
        write_json(index, {"engine": "", "weights": "", "images": {}})
        return
    records, weights = Manifest.load().train, resolve_weights(params.sam)
    cache, keep, lines = open_cache(params, weights, records)
    batches = pending_batches(records, lambda record: record not in cache, batch_size(params.runtime))
    for line in lines if keep or batches else ():
        print(f"embed: {line}", flush=True)
    if keep:
        run_batches(batches, partial(make_embed_steps, params, weights, cache), params.runtime, "embed")
    images = {record.id: record.sha256 for record in records}
    write_json(index, {"engine": cache.engine, "weights": weights.sha256, "images": images})


if __name__ == "__main__":
    run_main(main)
