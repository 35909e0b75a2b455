"""The manifest that `prepare` writes to data/dataset: classes, palette, and where each image lies.

One file for the classes and one a split, so that a stage can depend on what it reads alone. They come by `dvc pull`
too: ids and hashes name the files that stages write, so what could lead out of an artifact's folder is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from sesam.artifacts.archives import path_to_delete
from sesam.artifacts.atomic_io import read_bytes, read_json, write_json
from sesam.artifacts.label_png import read_image, read_label
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX
from sesam.paths import FINE, MANIFEST, round_dir

SPLITS = ("train", "val")


def validate_id(name: str) -> str:
    """An image's id, as it is; ValueError if ID.png in a folder would be no file below that folder."""
    parts = name.split("/")
    if any(part == "" or part.startswith(".") for part in parts) or not name.isprintable() or "\\" in name:
        raise ValueError("a name has printable characters, folders divided by /, and no part that begins with a dot")
    return name


_STRICT = ConfigDict(extra="forbid", strict=True)
_Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
_Byte = Annotated[int, Field(ge=0, le=255)]


@with_config(_STRICT)
@dataclass(frozen=True)
class ImageRecord:
    """One photograph. `id` names its files in every artifact; `sha256` is of the image file.

    fine: whether it has a fine label.
    """

    id: Annotated[str, AfterValidator(validate_id)]
    image: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    height: _Pixels
    width: _Pixels
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    fine: bool = True


_RECORD = TypeAdapter(ImageRecord)


def validate_record(item: ImageRecord) -> ImageRecord:
    """An item, as it is; ValueError if `Dataset.load` would refuse it."""
    return _RECORD.validate_json(json.dumps(asdict(item)))


@dataclass(frozen=True)
class Dataset:
    """Classes in id order, their RGB colors, and the images of each split.

    format, ignore_values: as in params.yaml, for what else is written in the data set's own label values.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[ImageRecord, ...]
    val: tuple[ImageRecord, ...]
    format: str = "folder"
    ignore_values: tuple[int, ...] = (IGNORE_INDEX,)

    def save(self, folder: Path = MANIFEST) -> None:
        raw = asdict(self)
        for split in SPLITS:
            write_json(folder / f"{split}.json", raw.pop(split))
        write_json(folder / "classes.json", raw)

    @classmethod
    def load(cls, folder: Path = MANIFEST) -> Dataset:
        """The manifest; SesamError if a file is missing or holds anything else than `save` writes."""
        classes = _read(folder / "classes.json", _Classes)
        if len(classes.classes) != len(classes.palette):
            raise SesamError(
                f"{folder / 'classes.json'} is damaged ({len(classes.palette)} colors of {len(classes.classes)} "
                "classes). Run `dvc repro prepare`, or `dvc checkout` if a colleague made it."
            )
        splits: dict[str, list[ImageRecord]] = {
            split: _read(folder / f"{split}.json", list[ImageRecord]) for split in SPLITS
        }
        for split, items in splits.items():
            if len({item.id for item in items}) < len(items):
                raise SesamError(f"{folder / split}.json has two images of one id. Run `dvc repro prepare`.")
        return cls(**vars(classes), train=tuple(splits["train"]), val=tuple(splits["val"]))


@with_config(_STRICT)
@dataclass(frozen=True)
class _Classes:
    """What classes.json holds: see Dataset."""

    name: str
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=255)]
    palette: tuple[tuple[_Byte, _Byte, _Byte], ...]
    format: str
    ignore_values: tuple[_Byte, ...]


def _read(path: Path, expected: Any) -> Any:
    try:
        return TypeAdapter(expected).validate_json(json.dumps(read_json(path)))  # JSON's lists may be tuples
    except ValidationError as problem:
        (first, *_) = problem.errors()
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise SesamError(
            f"{path} is damaged ({where}: {first['msg']}, got {first['input']!r:.60}). Run `dvc repro prepare`, or "
            "`dvc checkout` if a colleague made it."
        ) from None


def load_image(item: ImageRecord) -> np.ndarray:
    """An image, (H, W, 3) uint8 RGB; SesamError if it is missing, or not the file that `prepare` saw."""
    path = Path(item.image)
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() == item.sha256:
        image = read_image(path, content)
        if image.shape[:2] == (item.height, item.width):
            return image
    raise SesamError(
        f"{path} has changed since `prepare` saw it: labels and embeddings made of it would be another image's. "
        "Run `dvc repro`, which prepares it anew, or put the old file back."
    )


def load_label(folder: str | Path, item: ImageRecord, values: int = 256, unlabeled: bool = True) -> np.ndarray:
    """An image's PNG in an artifact, folder/ID.png, (H, W) uint8.

    SesamError if its size is not the image's, or if it holds anything but 0 to values - 1 and, if pixels may be
    unlabeled, 255.
    """
    path = Path(folder, f"{item.id}.png")
    found = read_label(path)
    if found.shape != (item.height, item.width):
        raise SesamError(
            f"{path} is {found.shape[1]}x{found.shape[0]} pixels, its image {item.width}x{item.height}. "
            f"Delete {path_to_delete(path)} and run `dvc repro`."
        )
    strange = found >= values
    if unlabeled:
        strange &= found != IGNORE_INDEX
    if strange.any():
        none = f", and {IGNORE_INDEX} for none" * unlabeled
        raise SesamError(
            f"{path} holds {found[strange].min()}; expected are 0 to {values - 1}{none}. Delete "
            f"{path_to_delete(path)} and run `dvc repro`."
        )
    return found


def load_fine_label(split: str, item: ImageRecord, classes: int) -> np.ndarray:
    """An image's fine label of so many classes, (H, W) uint8; all 255 where its maker gives none."""
    if not item.fine:
        return np.full((item.height, item.width), IGNORE_INDEX, np.uint8)
    return load_label(FINE / split, item, classes)


def load_predictions(name: str, item: ImageRecord, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's classes, of so many, and confidence in a round, both (H, W) uint8."""
    folder = round_dir(name, "predictions")
    return load_label(folder / "labels", item, classes), load_label(folder / "confidence", item)
