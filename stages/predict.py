"""What the round's teacher sees in every training image: its classes P and its confidence c.

A round without a teacher gets predictions that say nothing, class 255 and confidence 0, so that no later
stage need know.

python -m stages.predict ROUND
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sesam.artifacts.atomic_io import whole_folder
from sesam.artifacts.fingerprint import made_of
from sesam.artifacts.manifest import Dataset
from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.execution.parallel import progress
from sesam.params import NO_TEACHER
from sesam.paths import of_round
from sesam.segmentation.predictions import steps, write_nothing

if TYPE_CHECKING:
    pass


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    dataset, out = Dataset.load(), of_round(name, "predictions")
    if params.rounds[name].teacher == NO_TEACHER:
        with (
            whole_folder(out, packed=True) as folder,
            progress(len(dataset.train), f"predictions {name}: no teacher") as bar,
        ):
            for item in dataset.train:
                write_nothing(item, folder, dataset.palette)
                bar.update()
        return
    from sesam.execution.pipeline import batches_of, run

    with whole_folder(out, made_of("predict", name), packed=True) as folder:
        # one image a batch: what is predicted does not depend on what else is in it
        batches = batches_of(dataset.train, lambda item: not (folder / "confidence" / f"{item.id}.png").exists(), 1)
        run(batches, partial(steps, params, name, dataset, folder), params.runtime, f"predictions {name}")


if __name__ == "__main__":
    run_stage(main)
