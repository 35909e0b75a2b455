"""What the round's teacher sees in every training image: its classes P and its confidence c.

A round without a teacher gets predictions that say nothing, class 255 and confidence 0, so that no later
stage need know.

python -m stages.predict ROUND
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.fingerprint import stage_fingerprint
from sesam.artifacts.manifest import Dataset
from sesam.errors import run_main
from sesam.execution.parallel import progress_bar
from sesam.params import NO_TEACHER, parse_round
from sesam.paths import round_dir
from sesam.segmentation.predictions import steps, write_nothing

if TYPE_CHECKING:
    pass


def main() -> None:
    name, params = parse_round(__doc__.splitlines()[0])
    dataset, out = Dataset.load(), round_dir(name, "predictions")
    if params.rounds[name].teacher == NO_TEACHER:
        with (
            atomic_directory(out, packed=True) as folder,
            progress_bar(len(dataset.train), f"predictions {name}: no teacher") as bar,
        ):
            for item in dataset.train:
                write_nothing(item, folder, dataset.palette)
                bar.update()
        return
    from sesam.execution.pipeline import pending_batches, run_pipeline

    with atomic_directory(out, stage_fingerprint("predict", name), packed=True) as folder:
        # one image a batch: what is predicted does not depend on what else is in it
        batches = pending_batches(
            dataset.train, lambda item: not (folder / "confidence" / f"{item.id}.png").exists(), 1
        )
        run_pipeline(batches, partial(steps, params, name, dataset, folder), params.runtime, f"predictions {name}")


if __name__ == "__main__":
    run_main(main)
