"""The manifest that `prepare` writes to data/dataset: classes, palette, and where each image lies.

One file for the classes and one a split, so that a stage can depend on what it reads alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.common.errors import SesamError
from stages.common.files import read_json, write_json
from stages.common.folders import FINE, MANIFEST, of_round
from stages.common.images import read_label
from stages.common.labels import UNLABELLED

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Item:
    """One photograph. `id` names its files in every artefact; `sha256` is of the image file.

    fine: whether it has a fine label.
    """

    id: str
    image: str
    height: int
    width: int
    sha256: str
    fine: bool = True


@dataclass(frozen=True)
class Dataset:
    """Classes in id order, their RGB colours, and the images of each split.

    kind, ignore: as in params.yaml, for what else is written in the data set's own label values.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    kind: str = "folder"
    ignore: tuple[int, ...] = (UNLABELLED,)

    def save(self, folder: Path = MANIFEST) -> None:
        raw = asdict(self)
        for split in SPLITS:
            write_json(folder / f"{split}.json", raw.pop(split))
        write_json(folder / "classes.json", raw)

    @classmethod
    def load(cls, folder: Path = MANIFEST) -> Dataset:
        raw = read_json(folder / "classes.json")
        return cls(
            name=raw["name"],
            classes=tuple(raw["classes"]),
            palette=tuple(tuple(colour) for colour in raw["palette"]),
            kind=raw["kind"],
            ignore=tuple(raw["ignore"]),
            **{split: tuple(Item(**item) for item in read_json(folder / f"{split}.json")) for split in SPLITS},
        )


def item_label(folder: str | Path, item: Item) -> np.ndarray:
    """An image's PNG in an artefact, folder/ID.png, (H, W) uint8; SesamError if its size is not the image's."""
    path = Path(folder, f"{item.id}.png")
    values = read_label(path)
    if values.shape != (item.height, item.width):
        raise SesamError(
            f"{path} is {values.shape[1]}x{values.shape[0]} pixels, its image {item.width}x{item.height}. "
            "Delete it and run `dvc repro`."
        )
    return values


def item_fine(split: str, item: Item) -> np.ndarray:
    """An image's fine label, (H, W) uint8; all 255 where its maker gives none."""
    if not item.fine:
        return np.full((item.height, item.width), UNLABELLED, np.uint8)
    return item_label(FINE / split, item)


def item_predictions(name: str, item: Item) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's classes and confidence in a round, both (H, W) uint8."""
    folder = of_round(name, "predictions")
    return item_label(folder / "labels", item), item_label(folder / "confidence", item)
