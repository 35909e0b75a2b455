"""Draw a demo data set: street scenes with fine labels, in the layout of a folder data set."""

import argparse
from functools import partial
from pathlib import Path

from PIL import Image

from sesam.artifacts.atomic_io import atomic_directory, atomic_path
from sesam.artifacts.image_io import write_label
from sesam.demo.classes import PALETTE
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.params import load_params


def write_scene(job: tuple[str, int], folder: Path, seed: int) -> None:
    """Write photograph and label of a scene, given by its split and its number in it."""
    split, number = job
    scene = draw_scene((seed, ("train", "val").index(split), number))
    with atomic_path(folder / "images" / split / f"{number:04d}.png") as unfinished:
        Image.fromarray(scene.image).save(unfinished)
    write_label(folder / "labels" / split / f"{number:04d}.png", scene.labels, PALETTE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a key of `demo` in params.yaml")
    name, params = parser.parse_args().name, load_params()
    if name not in params.demo:
        raise SesamError(f"params.yaml: demo has no entry {name!r}; expected one of {', '.join(params.demo)}.")
    demo = params.demo[name]
    jobs = [(split, number) for split in ("train", "val") for number in range(getattr(demo, split))]
    with atomic_directory(Path("data/raw") / name) as folder:
        map_images(partial(write_scene, folder=folder, seed=demo.seed), jobs, params.runtime, "demo_data")


if __name__ == "__main__":
    run_main(main)
