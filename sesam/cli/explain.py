"""Explain the pseudo-label of a training image: its components, prompts, candidates and what was selected.

    sesam explain 0007 --round r2                      # a picture, and the components as text
    sesam explain 0007 --round r2 --pixel 120,45       # why this pixel has its label

With --pixel, no picture is drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_path
from sesam.artifacts.manifest import Dataset
from sesam.errors import SesamError
from sesam.params import load_params
from sesam.paths import METRICS

REPOSITORY_FILES = ("params.yaml",)


def pixel(text: str) -> tuple[int, int]:
    x, y = text.split(",")
    return int(x), int(y)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="id of a training image")
    parser.add_argument("--round", metavar="ROUND", help="a key of `rounds` in params.yaml (default: the last)")
    parser.add_argument(
        "--pixel", type=pixel, metavar="X,Y", help="explain this pixel instead; from the upper left corner, in pixels"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file of the picture (default: metrics/explained/ROUND/ID.png)"
    )


def run(options: argparse.Namespace) -> None:
    from sesam.reporting.trace import draw_trace, explain_pixel, list_components, load_trace  # slow

    params, data = load_params(), Dataset.load()
    name = options.round or list(params.rounds)[-1]
    params.check_round(name)
    item = next((one for one in data.train if one.id == options.id), None)
    if item is None:
        raise SesamError(f"{options.id} is not a training image id (example: {data.train[0].id}).")
    found = load_trace(item, name, data, params)
    if options.pixel is not None:
        x, y = options.pixel
        if not (0 <= x < item.width and 0 <= y < item.height):
            raise SesamError(f"--pixel {x},{y} is outside the image, {item.width}x{item.height} pixels.")
        print("\n".join(explain_pixel(found, x, y, data, params, name)))
        return
    print("\n".join(list_components(found, params.selection)))
    path = options.out or METRICS / "explained" / name / f"{item.id}.png"
    with atomic_path(path) as unfinished:
        draw_trace(found, data).save(unfinished, format="PNG")
    print(f"explain: {path}")
