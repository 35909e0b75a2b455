"""Label a folder of images of any size with a trained network.

    python -m sesam.cli.segment /path/to/images --model models/r2 --out labeled

Writes OUT/labels/ID.png, class ids as everywhere here, and OUT/overlays/ID.png, the image tinted with them. Images
larger than a tile are labeled tile by tile; of each tile its middle counts, so that no pixel is judged at an edge.
Images that are labeled already are left out: OUT/made_by.json says by which network, each label of which image.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from sesam.artifacts.atomic_io import atomic_path, read_bytes, read_json, sha256, write_json
from sesam.artifacts.label_png import SOURCE_DIGEST, full_palette, open_image, read_image, write_label
from sesam.datasets.layouts import images_below
from sesam.errors import ErrorCollector, SesamError, run_main
from sesam.execution.parallel import progress_bar, try_item
from sesam.geometry.tiling import check_overlap, tile_slices

MADE_BY = "made_by.json"


def predict_tiled(
    image: np.ndarray, predict: Callable[[np.ndarray], np.ndarray], tile: int, overlap: int
) -> np.ndarray:
    """Class ids (H, W) uint8 of an image (H, W, 3) uint8 RGB by `predict`, which gives those of a tile."""
    labels = np.empty(image.shape[:2], np.uint8)
    for rows, row_middle, row_inside in tile_slices(image.shape[0], tile, overlap):
        for columns, column_middle, column_inside in tile_slices(image.shape[1], tile, overlap):
            labels[row_middle, column_middle] = predict(image[rows, columns])[row_inside, column_inside]
    return labels


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image tinted with its classes, (H, W, 3) uint8. palette: (256, 3) uint8."""
    return ((image.astype(np.uint16) + palette[labels]) // 2).astype(np.uint8)


def read_if_pending(path: Path, label: Path) -> tuple[np.ndarray, str] | None:
    """An image, (H, W, 3) uint8 RGB, and its file's SHA-256; None if the label is there and of that very file.

    SesamError if the image cannot be read, or the label does not say of which image it is.
    """
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if label.exists():
        with open_image(label) as found:
            of = found.info.get(SOURCE_DIGEST)
        if of is None:
            raise SesamError(
                f"{label} does not say which image it is of: others wrote or changed it, or an earlier version. "
                "Move it to another folder, and it is made anew."
            )
        if of == digest:
            return None
    return read_image(path, content), digest


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder; images below it at any depth")
    parser.add_argument("--model", type=Path, required=True, help="a trained network's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tile", type=int, default=1024, help="pixels; larger is better where memory allows")
    parser.add_argument("--overlap", type=int, default=256, help="pixels of neighboring tiles")
    options = parser.parse_args(arguments)
    check_overlap(options.tile, options.overlap)
    parts = options.out / "labels", options.out / "overlays"  # may lie among the images
    for folder in (*parts, *parts[0].parents):
        if folder.exists() and not folder.is_dir():
            raise SesamError(f"{folder} is a file. Name another folder (--out).")
    found = images_below(options.images, but=parts)
    Image.MAX_IMAGE_PIXELS = None  # tiles are for images that Pillow would refuse as too large
    # slow to import, and not needed to tell what is wrong above
    import torch

    from sesam.segmentation.network import WEIGHTS, load_network, predict

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_network(options.model, device)
    colors = model.dataset_meta["palette"]
    by = {"network": sha256(options.model / WEIGHTS), "tile": str(options.tile), "overlap": str(options.overlap)}
    mark = options.out / MADE_BY
    if mark.exists() and read_json(mark) != by:
        raise SesamError(f"{options.out} holds labels of another network, or of other tiles. Name another folder.")
    if not mark.exists() and any(parts[0].rglob("*.png")):
        raise SesamError(f"{parts[0]} holds labels, and no {mark} says by which network. Name another folder (--out).")
    write_json(mark, by)

    def classes_of(part: np.ndarray) -> np.ndarray:
        return predict(model, part, device)[0]

    bad, there = ErrorCollector(), 0
    with progress_bar(len(found), "segment") as bar:
        for name, path in found.items():
            label = parts[0] / f"{name}.png"
            image = try_item(partial(read_if_pending, label=label), path)
            if isinstance(image, SesamError):
                bad.add(image)
            elif image is None:
                there += 1
            else:
                pixels, digest = image
                labels = predict_tiled(pixels, classes_of, options.tile, options.overlap)
                with atomic_path(parts[1] / f"{name}.png") as unfinished:
                    Image.fromarray(overlay(pixels, labels, full_palette(colors))).save(unfinished, format="PNG")
                write_label(label, labels, colors, digest)  # last: it says that all is there
            bar.update()
    if there:
        print(f"segment: {there} images were labeled already", flush=True)
    bad.raise_if_any()


if __name__ == "__main__":
    run_main(main)
