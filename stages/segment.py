"""Label a folder of images of any size with a trained network.

    python -m stages.segment /path/to/images --model models/student/r2 --out labelled

Writes OUT/labels/ID.png, class ids as everywhere here, and OUT/overlays/ID.png, the image tinted with them. Images
larger than a tile are labelled tile by tile; of each tile its middle counts, so that no pixel is judged at an edge.
Images that are labelled already are left out; OUT/made_by.json says by which network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.common.errors import SesamError, run_stage
from stages.common.files import read_json, sha256, whole, write_json
from stages.common.images import full_palette, read_image, write_label
from stages.common.parallel import progress
from stages.common.spans import check_overlap, spans
from stages.datasets.layouts import images_below

MADE_BY = "made_by.json"


def in_tiles(image: np.ndarray, predict: Callable[[np.ndarray], np.ndarray], tile: int, overlap: int) -> np.ndarray:
    """Class ids (H, W) uint8 of an image (H, W, 3) uint8 RGB by `predict`, which gives those of a tile."""
    labels = np.empty(image.shape[:2], np.uint8)
    for rows, row_middle, row_inside in spans(image.shape[0], tile, overlap):
        for columns, column_middle, column_inside in spans(image.shape[1], tile, overlap):
            labels[row_middle, column_middle] = predict(image[rows, columns])[row_inside, column_inside]
    return labels


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image tinted with its classes, (H, W, 3) uint8. palette: (256, 3) uint8."""
    return ((image.astype(np.uint16) + palette[labels]) // 2).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder; images below it at any depth")
    parser.add_argument("--model", type=Path, required=True, help="a trained network's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tile", type=int, default=1024, help="pixels; larger is better where memory allows")
    parser.add_argument("--overlap", type=int, default=256, help="pixels of neighbouring tiles")
    options = parser.parse_args(arguments)
    check_overlap(options.tile, options.overlap)
    parts = options.out / "labels", options.out / "overlays"  # may lie among the images
    found = images_below(options.images, but=parts)
    Image.MAX_IMAGE_PIXELS = None  # tiles are for images that Pillow would refuse as too large
    # slow to import, and not needed to tell what is wrong above
    import torch

    from stages.segmentation.network import WEIGHTS, load_network, predict

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_network(options.model, device)
    colours = model.dataset_meta["palette"]
    by = {"network": sha256(options.model / WEIGHTS), "tile": str(options.tile), "overlap": str(options.overlap)}
    if (mark := options.out / MADE_BY).exists() and read_json(mark) != by:
        raise SesamError(f"{options.out} holds labels of another network, or of other tiles. Name another folder.")
    write_json(mark, by)
    missing = {name: path for name, path in found.items() if not (parts[0] / f"{name}.png").exists()}
    if len(missing) < len(found):
        print(f"segment: {len(found) - len(missing)} images are labelled already", flush=True)

    def classes_of(part: np.ndarray) -> np.ndarray:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return predict(model, part, device)[0]

    with progress(len(missing), "segment") as bar:
        for name, path in missing.items():
            image = read_image(path)
            labels = in_tiles(image, classes_of, options.tile, options.overlap)
            with whole(parts[1] / f"{name}.png") as unfinished:
                Image.fromarray(overlay(image, labels, full_palette(colours))).save(unfinished, format="PNG")
            write_label(parts[0] / f"{name}.png", labels, colours)  # last: it says that all is there
            bar.update()


if __name__ == "__main__":
    run_stage(main)
