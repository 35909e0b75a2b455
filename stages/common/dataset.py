"""The manifest that `prepare` writes to data/dataset: classes, palette, and where each image lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from stages.common.files import read_json, write_json

MANIFEST = Path("data/dataset/dataset.json")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Item:
    """One photograph. `id` names its files in every artefact; `sha256` is of the image file."""

    id: str
    image: str
    height: int
    width: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """Classes in id order, their RGB colours, and the images of each split."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]

    def save(self, path: Path = MANIFEST) -> None:
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path = MANIFEST) -> Dataset:
        raw = read_json(path)
        return cls(
            name=raw["name"],
            classes=tuple(raw["classes"]),
            palette=tuple(tuple(colour) for colour in raw["palette"]),
            train=tuple(Item(**item) for item in raw["train"]),
            val=tuple(Item(**item) for item in raw["val"]),
        )
