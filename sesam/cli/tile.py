"""Split large images into tiles for the pipeline, and merge the tiles' labels.

    sesam tile split /data/aerial --out data/raw/aerial --tile-size 1024 --overlap 256
    sesam tile merge data/pseudo_labels/r1/labels --tiles data/raw/aerial --out aerial_labels

`split` keeps the folders of a data set (images/train, labels/train, annotators' PNGs) and turns each file NAME.png into
a folder NAME of PNGs, which `dataset.format: folder` reads as separate images. `merge` reverses that. Each tile
contributes its center alone, so that no pixel is labeled at a tile's edge.
"""

import argparse
import re
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from sesam.artifacts.atomic_io import atomic_directory, atomic_path, claim_folder, read_json, write_json
from sesam.artifacts.image_io import check_exif_orientation, open_image
from sesam.datasets.layouts import TILES_INDEX, describe_unread_files, list_files, list_images
from sesam.errors import SesamError, try_item
from sesam.execution.parallel import collect_results, track
from sesam.geometry.tiling import MIN_OVERLAP, check_overlap, stitch_tiles, tile_starts

TILE_NAME = re.compile(r"(\d+)-(\d+)")  # first row and column
MODES = ("L", "P", "RGB", "1")  # modes that tiles keep; others become RGB

MAX_TILE = 1 << 16  # pixels
Side = Annotated[int, Field(ge=1, le=1 << 20)]  # pixels


class TileIndex(BaseModel):
    """What `split` did. sizes: height and width of each image, by its folder of tiles."""

    tile_size: Annotated[int, Field(ge=4, le=MAX_TILE, alias="tile")]
    overlap: Annotated[int, Field(ge=MIN_OVERLAP)]
    sizes: dict[str, tuple[Side, Side]]

    def has_tiles(self, size: tuple[int, int], names: set[str]) -> bool:
        """Whether these are the names of the tiles of an image of height and width `size`."""
        tops, lefts = (tile_starts(side, self.tile_size, self.overlap) for side in size)
        is_all = len(names) == len(tops) * len(lefts)  # compared first: a wrong index may have billions
        return is_all and names == {tile_name(*corner) for corner in product(tops, lefts)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True)
    split = actions.add_parser("split", description="Split the images and labels below a folder.")
    split.set_defaults(action=split_all)
    split.add_argument("folder", type=Path, metavar="FOLDER", help="images and labels below it at any depth")
    split.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the tiles")
    add_tile_size(split)
    merge = actions.add_parser("merge", description="Merge the label PNGs of tiles.")
    merge.set_defaults(action=merge_all)
    merge.add_argument("folder", type=Path, metavar="FOLDER", help="label PNGs of tiles, below it at any depth")
    merge.add_argument(
        "--tiles", type=Path, required=True, metavar="DIR", help=f"what `split` wrote, with {TILES_INDEX}"
    )
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for the merged labels")


def add_tile_size(parser: argparse.ArgumentParser) -> None:
    """Add --tile-size and --overlap."""
    sides = (
        ("--tile-size", 1024, "side of a tile in pixels"),
        ("--overlap", 256, "least pixels that neighboring tiles share"),
    )
    for name, default, text in sides:
        parser.add_argument(name, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    Image.MAX_IMAGE_PIXELS = None  # Pillow refuses the large images that tiles are for
    options.action(options)


def split_all(options: argparse.Namespace) -> None:
    """Write the tiles of every image below a folder, and their index."""
    check_overlap(options.tile_size, options.overlap)
    if options.tile_size > MAX_TILE:
        raise SesamError(f"--tile-size is {options.tile_size}; expected at most {MAX_TILE} pixels.")
    images = list_images(options.folder)
    if text := describe_unread_files(options.folder):
        print(f"warning: {text}.", file=sys.stderr)
    if options.out.exists():
        raise SesamError(f"{options.out} exists. Remove it, or name another folder (--out).")
    made_of = {"tile": str(options.tile_size), "overlap": str(options.overlap)}
    made_of |= {f"image {name}": f"{(stat := path.stat()).st_size} {stat.st_mtime_ns}" for name, path in images.items()}
    sizes = dict[str, tuple[int, int]]()
    with atomic_directory(options.out, made_of) as folder:  # an interrupted call resumes

        def split(image: tuple[str, Path]) -> tuple[str, tuple[int, int]]:
            name, path = image
            return name, split_image(path, folder / name, options.tile_size, options.overlap)

        outcomes = (try_item(split, image) for image in images.items())
        collect_results(outcomes, len(images), "tile split", lambda result: sizes.update([result]))
        write_json(folder / TILES_INDEX, {"tile": options.tile_size, "overlap": options.overlap, "sizes": sizes})


def split_image(path: Path, folder: Path, tile_size: int, overlap: int) -> tuple[int, int]:
    """Write an image's tiles to folder/ROW-COLUMN.png, palettes unchanged; the image's height and width."""
    with open_image(path) as image:
        check_exif_orientation(path, image)
        source = image if image.mode in MODES else image.convert("RGB")
        _fill_palette(source)
        for top, left in product(*(tile_starts(side, tile_size, overlap) for side in image.size[::-1])):
            box = (left, top, min(left + tile_size, image.width), min(top + tile_size, image.height))
            if (tile := folder / f"{tile_name(top, left)}.png").exists():
                continue  # of an interrupted call
            with atomic_path(tile) as unfinished:
                source.crop(box).save(unfinished, format="PNG")
        return image.height, image.width


def read_tile_index(path: Path) -> TileIndex:
    """What `split` wrote; SesamError if it is anything else."""
    content = read_json(path)
    with suppress(ValidationError):
        index = TileIndex.model_validate(content)
        if index.overlap <= index.tile_size // 2:
            return index
    raise SesamError(f"{path} is not what `sesam tile split` wrote. Split the images again.")


def merge_all(options: argparse.Namespace) -> None:
    """Write the merged label of every folder of tiles below a folder."""
    path = options.tiles / TILES_INDEX
    index = read_tile_index(path)
    if not options.folder.is_dir():
        raise SesamError(f"{options.folder} is not a folder.")
    claim_folder(options.out, "sesam tile merge")
    tiles: dict[Path, set[str]] = {}
    for file in list_files(options.folder):
        if file.suffix == ".png" and TILE_NAME.fullmatch(file.stem):
            tiles.setdefault(file.parent, set()).add(file.stem)
    if not tiles:
        raise SesamError(f"{options.folder} has no tiles (NAME/ROW-COLUMN.png).")
    for folder, names in track(sorted(tiles.items()), len(tiles), "tile merge"):
        name = folder.relative_to(options.folder).as_posix()
        merge_tiles(folder, _original_size(name, names, index, path), index, options.out / f"{name}.png")


def _original_size(name: str, tiles: set[str], index: TileIndex, path: Path) -> tuple[int, int]:
    """Height and width of the image that was split into the folder `name`; SesamError if none or several fit."""
    sizes = {size for image, size in index.sizes.items() if f"/{image}".endswith(f"/{name}")}
    if not sizes:
        if name == ".":
            raise SesamError("The folder is one image's tiles. Name the folder above it.")
        raise SesamError(f"{path} has no image {name}. Name the folder that it was split into (--tiles).")
    if len(sizes) > 1:  # as where train and val share a name
        sizes = {size for size in sizes if index.has_tiles(size, tiles)}
        if len(sizes) != 1:
            reason = f"images {name} of several sizes; the tiles fit {'several' if sizes else 'none'} of them"
            raise SesamError(f"{path} has {reason}. Make the labels again, or rename one and split again.")
    return sizes.pop()


def merge_tiles(folder: Path, size: tuple[int, int], index: TileIndex, out: Path) -> None:
    """Write the label (height, width = `size`) of a folder's tiles; SesamError if one is missing or does not fit."""
    palette: list[int] | None = None

    def read_tile(where: tuple[slice, slice]) -> np.ndarray:
        nonlocal palette
        path = folder / f"{tile_name(*(side.start for side in where))}.png"
        height, width = (side.stop - side.start for side in where)
        with open_image(path) as image:
            if image.size != (width, height) or image.mode not in ("L", "P"):
                mode = "" if image.mode in ("L", "P") else f" in mode {image.mode}"
                raise SesamError(
                    f"{path} is {image.width}x{image.height}{mode}; expected {width}x{height} pixels of one channel. "
                    "Make the labels again."
                )
            palette = palette or image.getpalette()
            return np.array(image)

    merged = Image.fromarray(
        stitch_tiles(size, index.tile_size, index.overlap, read_tile), mode="P" if palette else "L"
    )
    if palette:
        merged.putpalette(palette)
        _fill_palette(merged)
    with atomic_path(out) as unfinished:
        merged.save(unfinished, format="PNG")


def tile_name(top: int, left: int) -> str:
    return f"{top:06d}-{left:06d}"


def _fill_palette(image: Image.Image) -> None:
    """Give a palette all its 256 colors: with fewer, Pillow packs fewer bits and cuts a label's 255 to 15 or less."""
    if image.mode == "P" and (palette := image.getpalette()):
        image.putpalette(palette + [0] * (768 - len(palette)))
