"""Label a folder of images of any size with a trained network.

    sesam segment /path/to/images --model models/r1 --out labeled

Writes OUT/labels/ID.png (class ids) and OUT/overlays/ID.png (the image tinted with its classes). Images larger than a
tile are predicted tile by tile; each tile contributes its center alone, so that no pixel is predicted at a tile's edge.
Images that are labeled already are skipped: OUT/made_by.json records the network and the tiles, each label its image.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import ValidationError

from sesam.artifacts.atomic_io import atomic_path, read_bytes, read_json, sha256, write_json
from sesam.artifacts.image_io import SOURCE_DIGEST, Palette, full_palette, open_image, read_image, write_label
from sesam.cli.tile import add_tile_size
from sesam.datasets.layouts import describe_unread_files, list_images
from sesam.errors import SesamError, describe_validation_error, try_item
from sesam.execution.parallel import collect_results
from sesam.geometry.tiling import check_overlap, stitch_tiles
from sesam.params import EvaluationParams

MADE_BY = "made_by.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, metavar="FOLDER", help="images below it at any depth")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a trained network, as models/r1")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for labels/ and overlays/")
    add_tile_size(parser)
    parser.add_argument("--mode", choices=("whole", "slide"), default="whole", help="as evaluation.mode in params.yaml")
    for name, of in (("--crop-size", "evaluation.crop_size"), ("--stride", "evaluation.stride")):
        parser.add_argument(name, type=int, nargs=2, metavar=("H", "W"), help=f"as {of}")
    parser.add_argument("--flip", action="store_true", help="as evaluation.flip")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="as evaluation.scales")


def read_evaluation(options: argparse.Namespace) -> EvaluationParams:
    """The options that evaluation has in params.yaml; SesamError if they do not go together."""
    names = EvaluationParams.model_fields
    try:
        return EvaluationParams.model_validate({name: getattr(options, name) for name in names})
    except ValidationError as problem:
        raise SesamError(f"sesam segment: {describe_validation_error(problem)[0]}.") from None


def run(options: argparse.Namespace) -> None:
    check_overlap(options.tile_size, options.overlap)
    evaluation = read_evaluation(options)
    outputs = options.out / "labels", options.out / "overlays"  # may be among the images
    for folder in (*outputs, *outputs[0].parents):
        if folder.exists() and not folder.is_dir():
            raise SesamError(f"{folder} is a file. Name another folder (--out).")
    images = list_images(options.images, exclude=outputs)
    if text := describe_unread_files(options.images, exclude=options.out):
        print(f"warning: {text}.", file=sys.stderr)
    Image.MAX_IMAGE_PIXELS = None  # Pillow refuses the large images that tiles are for
    import torch  # slow, and not needed to find the errors above

    from sesam.segmentation.network import WEIGHTS_FILE, load_network, predict

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_network(options.model, device)
    made_by = {"tile": str(options.tile_size), "overlap": str(options.overlap), "evaluation": evaluation.describe()}
    _record_network(options.out, {"network": sha256(options.model / WEIGHTS_FILE)} | made_by)

    def predict_labels(image: np.ndarray) -> np.ndarray:
        shape, tiles = image.shape[:2], (options.tile_size, options.overlap)
        return stitch_tiles(shape, *tiles, lambda where: predict(model, image[where], device, evaluation)[0])

    label = partial(label_image, out=options.out, predict=predict_labels, palette=model.dataset_meta["palette"])
    outcomes, labeled = (try_item(label, image) for image in images.items()), list[bool]()
    try:
        collect_results(outcomes, len(images), "segment", labeled.append)
    finally:
        if skipped := labeled.count(False):
            print(f"segment: {skipped} images were labeled already", flush=True)


def _record_network(out: Path, made_by: dict[str, str]) -> None:
    """Write OUT/made_by.json; SesamError if OUT has labels of another network or of unknown origin."""
    path, labels = out / MADE_BY, out / "labels"
    if any(labels.rglob("*.png")):  # without any, a run failed before its first label
        if not path.exists():
            reason = f"labels of unknown origin: {path} does not exist"
            raise SesamError(f"{labels} has {reason}. Name another folder (--out).")
        if read_json(path) != made_by:
            raise SesamError(f"{out} has labels of another network, tiles or evaluation. Name another folder (--out).")
    write_json(path, made_by)


def label_image(
    image: tuple[str, Path], out: Path, predict: Callable[[np.ndarray], np.ndarray], palette: Palette
) -> bool:
    """Write label and overlay of an image (ID, path); False if labeled already. SesamError if it cannot be read."""
    image_id, path = image
    label = out / "labels" / f"{image_id}.png"
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if label.exists():
        with open_image(label) as existing:
            source_digest = existing.info.get(SOURCE_DIGEST)
        if source_digest is None:
            reason = "it was changed, or another program or version wrote it"
            raise SesamError(f"{label} does not name its image: {reason}. Move it away, and it is made again.")
        if source_digest == digest:
            return False
    pixels = read_image(path, content)
    labels = predict(pixels)
    with atomic_path(out / "overlays" / f"{image_id}.png") as unfinished:
        Image.fromarray(overlay(pixels, labels, full_palette(palette))).save(unfinished, format="PNG")
    write_label(label, labels, palette, digest)  # last: its existence marks the image as done
    return True


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image tinted with its classes, (H, W, 3) uint8. palette: (256, 3) uint8."""
    return ((image.astype(np.uint16) + palette[labels]) // 2).astype(np.uint8)
