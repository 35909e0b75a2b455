"""Predict every training image with the round's teacher: its classes P and its confidence c.

A round without a teacher gets class 255 and confidence 0 everywhere, so that no later stage needs to know.

python -m stages.teacher_predictions ROUND
"""

from functools import partial
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.fingerprint import stage_fingerprint
from sesam.artifacts.image_io import Palette, write_gray, write_label
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import NO_TEACHER, parse_round
from sesam.paths import network_dir, round_dir


def write_no_predictions(record: ImageRecord, folder: Path, palette: Palette) -> None:
    """Write an image's class 255 and confidence 0 to the subfolders labels and confidence."""
    zeros = np.zeros((record.height, record.width), np.uint8)
    write_label(folder / "labels" / f"{record.id}.png", zeros + IGNORE_INDEX, palette)
    write_gray(folder / "confidence" / f"{record.id}.png", zeros)


def main() -> None:
    round_name, params = parse_round(__doc__.splitlines()[0])
    manifest, out = Manifest.load(), round_dir(round_name, "teacher_predictions")
    teacher, title = params.rounds[round_name].teacher, f"teacher_predictions {round_name}"
    if teacher != NO_TEACHER:
        from sesam.segmentation.inference import predict_images  # imports torch, which takes longer than all below

        with atomic_directory(out, stage_fingerprint("teacher_predictions", round_name), packed=True) as folder:
            predict_images(network_dir(teacher), manifest, folder, params, title)
        return
    with atomic_directory(out, packed=True) as folder:
        work = partial(write_no_predictions, folder=folder, palette=manifest.palette)
        map_images(work, manifest.train, params.runtime, f"{title}: no teacher")


if __name__ == "__main__":
    run_main(main)
