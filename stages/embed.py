"""SAM's image encoder over every training image, once for all rounds and prompts.

The artefact is an index, data/embeddings.json; the embeddings themselves lie in a
cache beside it that may be deleted at any time.
"""

from __future__ import annotations

from pathlib import Path

from stages.common.dataset import Dataset
from stages.common.device import pick_device
from stages.common.errors import run_stage
from stages.common.files import write_json
from stages.common.parallel import progress
from stages.common.params import load_params
from stages.sam.cache import EmbeddingCache
from stages.sam.models import MODELS, check_checkpoint, engine_fingerprint


def main() -> None:
    params, dataset = load_params(), Dataset.load()
    checkpoint = Path(params.sam.checkpoint)
    engine = engine_fingerprint(params.sam.model, check_checkpoint(params.sam.model, checkpoint))
    cache = EmbeddingCache(engine)
    missing = [item for item in dataset.train if item not in cache]
    if missing:
        segmenter = MODELS[params.sam.model].load(checkpoint, pick_device(params.runtime))
        with progress(len(missing), "embed") as bar:
            for item in missing:
                cache.compute(segmenter, item)
                bar.update()
    images = {item.id: item.sha256 for item in dataset.train}
    write_json(Path("data/embeddings.json"), {"engine": engine, "images": images})


if __name__ == "__main__":
    run_stage(main)
