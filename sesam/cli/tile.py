"""Images too large for a network or a SAM, cut into tiles for the pipeline, and its labels joined again.

    python -m sesam.cli.tile cut /data/aerial --out data/raw/aerial --tile 1024 --overlap 256
    python -m sesam.cli.tile join data/pseudo_labels/r2/labels --cut data/raw/aerial --out aerial_labels

`split` keeps the folders of a data set (images/train, labels/train, annotators' PNGs) and makes of each file NAME.png a
folder NAME of PNGs, which `dataset.format: folder` takes as images of their own. `merge` puts these together again:
of each tile its middle counts, so no pixel is labeled at an edge, and an object that several tiles see is one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from sesam.artifacts.atomic_io import atomic_directory, atomic_path, read_json, write_json
from sesam.artifacts.label_png import check_exif_orientation, open_image
from sesam.datasets.layouts import files_below, images_below
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import progress_bar
from sesam.geometry.tiling import MIN_OVERLAP, check_overlap, tile_slices, tile_starts

TILE = re.compile(r"(\d+)-(\d+)")  # a tile's name: its first row and column
CUT = "tiles.json"  # beside what was cut: the tiles' side and overlap, and of each folder of tiles the image's size
MODES = ("L", "P", "RGB", "1")  # as which tiles are written; anything else becomes RGB


class TileIndex(BaseModel):
    """What `split_image` did. sizes: of a folder of tiles, height and width of the image."""

    tile: Annotated[int, Field(ge=4, le=1 << 16)]
    overlap: Annotated[int, Field(ge=MIN_OVERLAP)]
    sizes: dict[str, tuple[Annotated[int, Field(ge=1, le=1 << 20)], Annotated[int, Field(ge=1, le=1 << 20)]]]


def tile_name(top: int, left: int) -> str:
    return f"{top:06d}-{left:06d}"


def split_image(path: Path, folder: Path, tile: int, overlap: int) -> tuple[int, int]:
    """Write an image's tiles to folder/ROW-COLUMN.png, palettes as they are; the image's height and width."""
    with open_image(path) as image:
        check_exif_orientation(path, image)
        picture = image if image.mode in MODES else image.convert("RGB")
        _keep_values(picture)
        for top in tile_starts(image.height, tile, overlap):
            for left in tile_starts(image.width, tile, overlap):
                box = (left, top, min(left + tile, image.width), min(top + tile, image.height))
                with atomic_path(folder / f"{tile_name(top, left)}.png") as unfinished:
                    picture.crop(box).save(unfinished, format="PNG")
        return image.height, image.width


def merge_tiles(folder: Path, size: tuple[int, int], done: TileIndex, out: Path) -> None:
    """Write the label, of `size`, whose tiles lie in a folder; SesamError if one is missing or does not fit."""
    labels, palette = np.empty(size, np.uint8), None
    across = list(tile_slices(size[1], done.tile, done.overlap))
    for rows, middle_rows, inside_rows in tile_slices(size[0], done.tile, done.overlap):
        for columns, middle_columns, inside_columns in across:
            path = folder / f"{tile_name(rows.start, columns.start)}.png"
            with open_image(path) as image:
                part, palette = np.array(image), palette or image.getpalette()
            expected = rows.stop - rows.start, columns.stop - columns.start
            if part.shape != expected:
                raise SesamError(
                    f"{path} is {'x'.join(str(side) for side in part.shape[::-1])}; expected are {expected[1]}x"
                    f"{expected[0]} pixels of one channel. Make the labels again."
                )
            labels[middle_rows, middle_columns] = part[inside_rows, inside_columns]
    picture = Image.fromarray(labels, mode="P" if palette else "L")
    if palette:
        picture.putpalette(palette)
        _keep_values(picture)
    with atomic_path(out) as unfinished:
        picture.save(unfinished, format="PNG")


def grid(size: tuple[int, int], done: TileIndex) -> set[str]:
    """The names of the tiles of an image of `size`."""
    down, across = (tile_starts(side, done.tile, done.overlap) for side in size)
    return {tile_name(top, left) for top in down for left in across}


def _keep_values(picture: Image.Image) -> None:
    """Give a palette all its 256 colors: of fewer Pillow packs fewer bits, which cut a label's 255 to 15 or less."""
    if picture.mode == "P" and (palette := picture.getpalette()):
        picture.putpalette(palette + [0] * (768 - len(palette)))


def split_all(options: argparse.Namespace) -> None:
    check_overlap(options.tile, options.overlap)
    found = images_below(options.folder)
    if options.out.exists():
        raise SesamError(f"{options.out} is there already. Remove it, or name another folder.")
    sizes = {}
    with atomic_directory(options.out) as folder, progress_bar(len(found), "cut") as bar:
        for name, path in found.items():
            sizes[name] = split_image(path, folder / name, options.tile, options.overlap)
            bar.update()
        write_json(folder / CUT, {"tile": options.tile, "overlap": options.overlap, "sizes": sizes})


def merge_all(options: argparse.Namespace) -> None:
    try:
        done = TileIndex.model_validate(read_json(options.cut / CUT))
    except ValidationError:
        raise SesamError(f"{options.cut / CUT} is not what `split_image` wrote. Cut the images again.") from None
    if not options.folder.is_dir():
        raise SesamError(f"{options.folder} is no folder.")
    found: dict[Path, set[str]] = {}
    for path in files_below(options.folder):
        if path.suffix == ".png" and TILE.fullmatch(path.stem):
            found.setdefault(path.parent, set()).add(path.stem)
    if not found:
        raise SesamError(f"{options.folder} holds no tiles, NAME/ROW-COLUMN.png.")
    with progress_bar(len(found), "join") as bar:
        for folder in sorted(found):
            name = folder.relative_to(options.folder).as_posix()
            sizes = {size for one, size in done.sizes.items() if f"/{one}".endswith(f"/{name}")}
            if not sizes:
                raise SesamError(f"{options.cut / CUT} has no image {name}. Name the folder that it was cut into.")
            if len(sizes) > 1:  # as where train and val share a name
                sizes = {size for size in sizes if grid(size, done) == found[folder]}
                if len(sizes) != 1:
                    raise SesamError(
                        f"{options.cut / CUT} has images {name} of several sizes; the tiles in {folder} fit "
                        f"{'several' if sizes else 'none'} of them. Make the labels again, or rename one and cut again."
                    )
            merge_tiles(folder, sizes.pop(), done, options.out / f"{name}.png")
            bar.update()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ways = parser.add_subparsers(required=True)
    one = ways.add_parser("cut", help="a folder of images and labels, at any depth")
    one.set_defaults(work=split_all)
    one.add_argument("folder", type=Path)
    one.add_argument("--tile", type=int, default=1024, help="pixels")
    one.add_argument("--overlap", type=int, default=256, help="pixels that neighbors share, at least")
    other = ways.add_parser("join", help="label PNGs of tiles")
    other.set_defaults(work=merge_all)
    other.add_argument("folder", type=Path)
    other.add_argument("--cut", type=Path, required=True, help="the folder that `split_image` wrote")
    for way in (one, other):
        way.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    Image.MAX_IMAGE_PIXELS = None  # Pillow refuses what is as large as these on purpose
    options.work(options)


if __name__ == "__main__":
    run_main(main)
