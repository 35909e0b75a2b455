"""Images too large for a network or a SAM, cut into tiles for the pipeline, and its labels joined again.

    python -m stages.tiles cut /data/aerial --out data/raw/aerial --tile 1024 --overlap 256
    python -m stages.tiles join data/pseudo_labels/r2/labels --out aerial_labels

`cut` keeps the folders of a data set (images/train, labels/train, annotators' PNGs) and makes of each file NAME.png a
folder NAME of PNGs, which `dataset.kind: folder` takes as images of their own. `join` puts these together again:
of each tile its middle counts, so no pixel is labelled at an edge, and an object that several tiles see is one.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.errors import SesamError, run_stage
from stages.common.files import whole, whole_folder
from stages.common.images import open_image
from stages.common.parallel import progress
from stages.common.spans import LEAST_OVERLAP, middles, starts
from stages.datasets.layouts import IMAGE_SUFFIXES, files_below

TILE = re.compile(r"(\d+)-(\d+)")  # a tile's name: its first row and column


def cut(path: Path, folder: Path, tile: int, overlap: int) -> int:
    """Write an image's tiles to folder/ROW-COLUMN.png, modes and palettes as they are; how many."""
    with open_image(path) as image:
        count = 0
        for top in starts(image.height, tile, overlap):
            for left in starts(image.width, tile, overlap):
                box = (left, top, min(left + tile, image.width), min(top + tile, image.height))
                with whole(folder / f"{top:06d}-{left:06d}.png") as unfinished:
                    image.crop(box).save(unfinished, format="PNG")
                count += 1
    return count


def join(tiles: Sequence[Path], out: Path) -> None:
    """Write the label whose tiles, of one channel, these are; SesamError if one is missing or does not fit."""
    places = {tuple(int(part) for part in path.stem.split("-")): path for path in tiles}
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    with open_image(tiles[0]) as first:
        tile_height, tile_width, palette = first.height, first.width, first.getpalette()
    height, width = rows[-1] + tile_height, columns[-1] + tile_width
    labels = np.empty((height, width), np.uint8)
    for top, (first_row, last_row) in zip(rows, middles(rows, tile_height, height), strict=True):
        for left, (first_column, last_column) in zip(columns, middles(columns, tile_width, width), strict=True):
            if (top, left) not in places:
                raise SesamError(f"{tiles[0].parent} has no tile {top:06d}-{left:06d}.png. Make the labels again.")
            with open_image(places[top, left]) as image:
                part = np.array(image)
            if part.shape != (tile_height, tile_width):
                raise SesamError(
                    f"{places[top, left]} is {part.shape[1]}x{part.shape[0]} pixels of one channel, not "
                    f"{tile_width}x{tile_height} as the others. Make the labels again."
                )
            inside = part[first_row - top : last_row - top, first_column - left : last_column - left]
            labels[first_row:last_row, first_column:last_column] = inside
    picture = Image.fromarray(labels, mode="P" if palette else "L")
    if palette:
        picture.putpalette(palette)
    with whole(out) as unfinished:
        picture.save(unfinished, format="PNG")


def cut_all(options: argparse.Namespace) -> None:
    if not LEAST_OVERLAP <= options.overlap <= options.tile // 2:
        raise SesamError(f"--overlap must be {LEAST_OVERLAP} to half of --tile, {options.tile // 2} pixels.")
    paths = [path for path in files_below(options.folder) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise SesamError(f"{options.folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    if options.out.exists():
        raise SesamError(f"{options.out} is there already. Remove it, or name another folder.")
    count = 0
    with whole_folder(options.out) as folder, progress(len(paths), "cut") as bar:
        for path in paths:
            count += cut(path, folder / path.relative_to(options.folder).with_suffix(""), options.tile, options.overlap)
            bar.update()
    print(f"{options.out}: {count} tiles")


def join_all(options: argparse.Namespace) -> None:
    folders = defaultdict(list)
    for path in files_below(options.folder):
        if path.suffix == ".png" and TILE.fullmatch(path.stem):
            folders[path.parent].append(path)
    if not folders:
        raise SesamError(f"{options.folder} holds no tiles, NAME/ROW-COLUMN.png.")
    with progress(len(folders), "join") as bar:
        for folder, tiles in folders.items():
            join(tiles, options.out / f"{folder.relative_to(options.folder)}.png")
            bar.update()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = parser.add_subparsers(required=True)
    one = ways.add_parser("cut", help="a folder of images and labels, at any depth")
    one.set_defaults(work=cut_all)
    one.add_argument("folder", type=Path)
    one.add_argument("--tile", type=int, default=1024, help="pixels")
    one.add_argument("--overlap", type=int, default=256, help="pixels that neighbours share, at least")
    other = ways.add_parser("join", help="label PNGs of tiles")
    other.set_defaults(work=join_all)
    other.add_argument("folder", type=Path)
    for way in (one, other):
        way.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise SesamError(f"{options.folder} is no folder.")
    Image.MAX_IMAGE_PIXELS = None  # Pillow refuses what is as large as these on purpose
    options.work(options)


if __name__ == "__main__":
    run_stage(main)
