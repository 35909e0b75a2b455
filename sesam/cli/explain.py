"""One training image explained: each component with its prompt, SAM's candidates, which was kept or why none was.

python -m sesam.cli.explain 0007 --round r2                  # the picture, and the components as text
python -m sesam.cli.explain 0007 --round r2 --at 120,45      # why this pixel has its label
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_path
from sesam.artifacts.manifest import Dataset
from sesam.errors import SesamError, run_main
from sesam.params import load_params
from sesam.paths import METRICS
from sesam.reporting.trace import draw_trace, explain_pixel, list_components, load_trace


def pixel(text: str) -> tuple[int, int]:
    x, y = text.split(",")
    return int(x), int(y)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("id", help="of a training image")
    parser.add_argument("--round", help="a key of `rounds` in params.yaml; the last, if it is not given")
    parser.add_argument("--at", type=pixel, metavar="X,Y", help="a pixel to explain, from the upper left, instead")
    parser.add_argument("--out", type=Path, help="where the picture goes; metrics/explained/ROUND/ID.png, if not given")
    options = parser.parse_args(arguments)
    params, data = load_params(), Dataset.load()
    name = options.round or list(params.rounds)[-1]
    params.check_round(name)
    item = next((one for one in data.train if one.id == options.id), None)
    if item is None:
        raise SesamError(f"{options.id} is no training image. One is called {data.train[0].id}.")
    found = load_trace(item, name, data, params)
    if options.at is not None:
        x, y = options.at
        if not (0 <= x < item.width and 0 <= y < item.height):
            raise SesamError(f"--at {x},{y} lies outside the image, {item.width}x{item.height} pixels.")
        print("\n".join(explain_pixel(found, x, y, data, params, name)))
        return
    print("\n".join(list_components(found, params.selection)))
    path = options.out or METRICS / "explained" / name / f"{item.id}.png"
    with atomic_path(path) as unfinished:
        draw_trace(found, data).save(unfinished, format="PNG")
    print(f"explain: {path}")


if __name__ == "__main__":
    run_main(main)
