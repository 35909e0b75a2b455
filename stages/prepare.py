"""Check a data set as it lies on disk and bring its labels to one form: class ids, 255 = ignore.

Images stay where they are; the manifest says where.
"""

from __future__ import annotations

import colorsys
from functools import partial
from pathlib import Path

import numpy as np

from stages.common.dataset import SPLITS, Dataset, Item
from stages.common.errors import SesamError, run_stage
from stages.common.files import sha256, whole_folder
from stages.common.labels import UNLABELLED, read_image, read_label, write_label
from stages.common.parallel import per_image
from stages.common.params import DatasetParams, load_params

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def class_ids(label: np.ndarray, classes: int, ignore: list[int]) -> np.ndarray:
    """Label values (H, W) uint8 with the ignore values set to 255; ValueError for a value that is no class."""
    strange = np.setdiff1d(label, [*range(classes), *ignore])
    if len(strange):
        raise ValueError(
            f"holds the class ids {strange.tolist()}; expected 0 to {classes - 1}. "
            "Correct the label, or add the values to dataset.ignore"
        )
    return np.where(np.isin(label, ignore), UNLABELLED, label).astype(np.uint8)


def colour_wheel(classes: int) -> list[tuple[int, int, int]]:
    """Distinct RGB colours for data sets without a palette."""
    turns = [colorsys.hsv_to_rgb(k / classes, 0.85 if k % 2 else 0.55, 0.95 if k % 3 else 0.7) for k in range(classes)]
    return [tuple(round(255 * part) for part in colour) for colour in turns]


def find_pairs(root: Path, split: str) -> list[tuple[str, Path, Path]]:
    """(id, image, label) of every image of a split of a folder data set, in id order."""
    folder = root / "images" / split
    if not folder.is_dir():
        raise SesamError(f"{folder} is missing. dataset.root needs images/{{train,val}} and labels/{{train,val}}.")
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise SesamError(f"{folder} holds no image. Put {' or '.join(IMAGE_SUFFIXES)} files there.")
    ids = [p.relative_to(folder).with_suffix("").as_posix() for p in images]
    twice = sorted({k for k in ids if ids.count(k) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise SesamError(f"{folder / twice[0]} is there with two suffixes. Each image needs a name of its own.")
    return [(k, p, root / "labels" / split / f"{k}.png") for k, p in zip(ids, images, strict=True)]


def check_pair(
    pair: tuple[str, Path, Path], split: str, folder: Path, params: DatasetParams, palette: list
) -> Item | str:
    """Check an image and its label and write the label; what is wrong, as text, if anything is."""
    name, image_path, label_path = pair
    try:
        if not label_path.exists():
            raise SesamError(f"{label_path} is missing, but {image_path} is there. Add the label or remove the image.")
        image, label = read_image(image_path), read_label(label_path)
        if image.shape[:2] != label.shape:
            raise SesamError(
                f"{label_path} is {label.shape[1]}x{label.shape[0]} pixels, its image {image_path} is "
                f"{image.shape[1]}x{image.shape[0]}. Both must have one size."
            )
        try:
            ids = class_ids(label, len(params.classes), params.ignore)
        except ValueError as problem:
            raise SesamError(f"{label_path} {problem}.") from None
    except SesamError as problem:
        return str(problem)
    write_label(folder / split / f"{name}.png", ids, palette)
    return Item(name, str(image_path), *image.shape[:2], sha256(image_path))


def main() -> None:
    params = load_params()
    dataset = params.dataset
    root = Path(dataset.root)
    palette = dataset.palette or colour_wheel(len(dataset.classes))
    pairs = {split: find_pairs(root, split) for split in SPLITS}
    with whole_folder(Path("data/fine")) as folder:
        items = {}
        for split in SPLITS:
            check = partial(check_pair, split=split, folder=folder, params=dataset, palette=palette)
            items[split] = per_image(check, pairs[split], params.runtime.workers, f"prepare {split}")
        wrong = [item for split in SPLITS for item in items[split] if isinstance(item, str)]
        if wrong:
            more = [f"and {len(wrong) - 5} more"] if len(wrong) > 5 else []
            raise SesamError("\n  ".join([f"{root} has {len(wrong)} faults:", *wrong[:5], *more]))
    Dataset(root.name, dataset.classes, palette, items["train"], items["val"]).save()


if __name__ == "__main__":
    run_stage(main)
