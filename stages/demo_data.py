"""Draw a demo data set: street scenes with fine labels, in the layout of a folder data set."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from PIL import Image

from sesam.artifacts.atomic_io import atomic_directory, atomic_path
from sesam.artifacts.label_png import write_label
from sesam.demo.classes import PALETTE
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.params import load_params


def draw(item: tuple[str, int], folder: Path, seed: int) -> None:
    """Draw scene number `item` of a split and write its photograph and label."""
    split, number = item
    scene = draw_scene((seed, ("train", "val").index(split), number))
    with atomic_path(folder / "images" / split / f"{number:04d}.png") as unfinished:
        Image.fromarray(scene.image).save(unfinished)
    write_label(folder / "labels" / split / f"{number:04d}.png", scene.labels, PALETTE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a key of `draw_trace` in params.yaml")
    name = parser.parse_args().name
    params = load_params()
    if name not in params.demo:
        raise SesamError(f"params.yaml: demo has no entry {name!r}; it has {sorted(params.demo)}.")
    wanted = params.demo[name]
    items = [(split, k) for split in ("train", "val") for k in range(getattr(wanted, split))]
    with atomic_directory(Path("data/raw") / name) as folder:
        map_images(partial(draw, folder=folder, seed=wanted.seed), items, params.runtime, "demo_data")


if __name__ == "__main__":
    run_main(main)
