"""Step 3 of the method: SAM's three candidate masks, with predicted IoU, for every component's prompt."""

from functools import partial

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.fingerprint import stage_fingerprint
from sesam.artifacts.manifest import Manifest
from sesam.errors import run_main
from sesam.execution.batches import batch_size, pending_batches, run_batches
from sesam.params import parse_round
from sesam.paths import round_dir
from sesam.sam.cache import open_cache
from sesam.sam.checkpoints import resolve_weights
from sesam.sam.inference import make_mask_steps, write_masks


def main() -> None:
    round_name, params = parse_round(__doc__)
    records, title = Manifest.load().train, f"sam_masks {round_name}"
    out, fingerprint = round_dir(round_name, "masks"), stage_fingerprint("sam_masks", round_name)
    with atomic_directory(out, fingerprint, packed=True) as folder:
        if not params.sam.enabled:  # then `prompts` writes no components either
            for record in records:
                write_masks(record, {}, None, folder, None)
            return
        pending = {record for record in records if not (folder / f"{record.id}.json").exists()}
        if len(pending) < len(records):
            print(f"{title}: {len(records) - len(pending)} images are done already")
        weights = resolve_weights(params.sam)
        cache, keep, _ = open_cache(params, weights, records)
        batches = pending_batches(records, pending.__contains__, batch_size(params.runtime))
        make_steps = partial(make_mask_steps, params, weights, round_dir(round_name, "prompts"), folder, cache, keep)
        run_batches(batches, make_steps, params.runtime, title)


if __name__ == "__main__":
    run_main(main)
