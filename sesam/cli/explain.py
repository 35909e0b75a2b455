"""Explain the pseudo-label of a training image: its components, prompts, candidates and what was selected.

    sesam explain 0007 --round r1                      # a picture, and the components as text
    sesam explain 0007 --round r1 --pixel 120,45       # why this pixel has its label

With --pixel, no picture is drawn.
"""

import argparse
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from sesam.artifacts.atomic_io import atomic_path, read_bytes
from sesam.artifacts.manifest import Manifest
from sesam.errors import SesamError
from sesam.params import load_params
from sesam.paths import METRICS

REPOSITORY_FILES = ("params.yaml",)
MADE_BY = b"sesam explain"


def pixel(text: str) -> tuple[int, int]:
    x, y = text.split(",")
    return int(x), int(y)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="id of a training image")
    parser.add_argument("--round", metavar="ROUND", help="a key of `rounds` in params.yaml (default: the last)")
    parser.add_argument("--pixel", type=pixel, metavar="X,Y", help="explain this pixel; from the upper left, in pixels")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture (default: metrics/explained/ROUND/ID.png)")


def run(options: argparse.Namespace) -> None:
    from sesam.reporting.panels import trace_page  # slow, and not needed for help
    from sesam.reporting.trace import explain_pixel, list_components, load_trace

    params, manifest = load_params(), Manifest.load()
    round_name = params.check_round(options.round or list(params.rounds)[-1])
    record = next((record for record in manifest.train if record.id == options.id), None)
    if record is None:
        raise SesamError(f"{options.id} is not a training image id (example: {manifest.train[0].id}).")
    trace = load_trace(record, round_name, manifest, params)
    if options.pixel is not None:
        x, y = options.pixel
        if not (0 <= x < record.width and 0 <= y < record.height):
            raise SesamError(f"--pixel {x},{y} is outside the image, {record.width}x{record.height} pixels.")
        print("\n".join(explain_pixel(trace, x, y)))
        return
    print("\n".join(list_components(trace)))
    path = options.out or METRICS / "explained" / round_name / f"{record.id}.png"
    if path.is_dir() or (path.exists() and MADE_BY not in read_bytes(path)[:4096]):
        raise SesamError(f"{path} exists, and is not a picture of `sesam explain`. Name another file (--out).")
    info = PngInfo()
    info.add_text("Software", MADE_BY.decode())
    with atomic_path(path) as unfinished:
        trace_page(trace, with_components=True).save(unfinished, format="PNG", pnginfo=info)
    print(f"explain: {path}")
