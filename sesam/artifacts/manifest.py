"""The manifest that `prepare` writes to data/dataset: classes, palette, and the path of each image.

One file for the classes and one per split, so that a stage depends only on what it reads. They also come by
`sesam pull`: ids and hashes name the files that stages write, so ids that lead out of an artifact's folder are refused.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config

from sesam.artifacts.archives import path_to_delete
from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.dvc_outputs import MAX_PATH
from sesam.artifacts.image_io import read_image, read_label
from sesam.errors import SesamError, describe_validation_error
from sesam.labels import IGNORE_INDEX
from sesam.params import ClassName, printable
from sesam.paths import FINE_LABELS, MANIFEST, round_dir

SPLITS = ("train", "val")
MAX_NAME = 255 - len(".json")  # bytes that file systems leave for an id's last part in the names of all artifacts


def validate_id(image_id: str) -> str:
    """An image's id, as it is; ValueError if folder/ID.png would not be below the folder."""
    if len(image_id) > MAX_PATH:
        raise ValueError(f"a name has at most {MAX_PATH} characters")
    parts = image_id.split("/")
    if any(part == "" or part.startswith(".") for part in parts) or not image_id.isprintable() or "\\" in image_id:
        raise ValueError("a name has printable characters, folders divided by /, and no part that begins with a dot")
    if len(os.fsencode(parts[-1])) > MAX_NAME:
        raise ValueError(f"a name has at most {MAX_NAME} bytes")
    return image_id


_STRICT = ConfigDict(extra="forbid", strict=True)
_Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
_Byte = Annotated[int, Field(ge=0, le=255)]


@with_config(_STRICT)
@dataclass(frozen=True)
class ImageRecord:
    """One photograph. `id` names its files in every artifact; `sha256` is of its file."""

    id: Annotated[str, AfterValidator(validate_id)]
    image: Annotated[str, Field(min_length=1, max_length=4 * MAX_PATH), AfterValidator(printable)]
    height: _Pixels
    width: _Pixels
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    has_fine_label: Annotated[bool, Field(alias="fine")] = True


_RECORD, _RECORDS = TypeAdapter(ImageRecord), TypeAdapter(tuple[ImageRecord, ...])


def validate_record(record: ImageRecord) -> ImageRecord:
    """A record, as it is; ValueError if `Manifest.load` would refuse it."""
    return _RECORD.validate_json(json.dumps(_RECORD.dump_python(record, by_alias=True)))


@dataclass(frozen=True)
class Manifest:
    """Classes in id order, their RGB colors, the images of each split; format, ignore_values and map of params.yaml."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    train: tuple[ImageRecord, ...]
    val: tuple[ImageRecord, ...]
    format: str = "folder"
    ignore_values: tuple[int, ...] = (IGNORE_INDEX,)
    map: dict[str, str | None] = field(default_factory=dict)

    def save(self, folder: Path = MANIFEST) -> None:
        for split in SPLITS:
            write_json(folder / f"{split}.json", _RECORDS.dump_python(getattr(self, split), by_alias=True))
        write_json(folder / "classes.json", {key: getattr(self, key) for key in _Classes.__annotations__})

    @classmethod
    def load(cls, folder: Path = MANIFEST) -> Self:
        """The manifest; SesamError if a file is missing or holds anything else than `save` writes."""
        path = folder / "classes.json"
        classes: _Classes = _read(path, _Classes)
        if len(classes.classes) != len(classes.palette):
            raise _damaged(path, f"{len(classes.palette)} colors of {len(classes.classes)} classes")
        if len(set(classes.classes)) < len(classes.classes):
            raise _damaged(path, "two classes have one name")
        train, val = (_read_split(folder / f"{split}.json") for split in SPLITS)
        return cls(**vars(classes), train=train, val=val)


@with_config(_STRICT)
@dataclass(frozen=True)
class UnusedImage:
    """An image of the data set that no split has, by dataset.exclude or .subset; annotations may be of it."""

    id: str
    image: str


_UNUSED = TypeAdapter(tuple[UnusedImage, ...])
UNUSED = "unused.json"


def save_unused(images: Iterable[UnusedImage], folder: Path = MANIFEST) -> None:
    write_json(folder / UNUSED, _UNUSED.dump_python(tuple(images)))


def load_unused(folder: Path = MANIFEST) -> tuple[UnusedImage, ...]:
    """What `save_unused` wrote, nothing if it did not; SesamError if the file holds anything else."""
    path = folder / UNUSED
    images: tuple[UnusedImage, ...] = _read(path, tuple[UnusedImage, ...]) if path.exists() else ()
    return images


@with_config(_STRICT)
@dataclass(frozen=True)
class _Classes:
    """What classes.json holds: see Manifest."""

    name: str
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2, max_length=255)]
    palette: tuple[tuple[_Byte, _Byte, _Byte], ...]
    format: str
    ignore_values: tuple[_Byte, ...]
    map: dict[str, str | None]


def _read_split(path: Path) -> tuple[ImageRecord, ...]:
    records: tuple[ImageRecord, ...] = _read(path, tuple[ImageRecord, ...])
    if len({record.id for record in records}) < len(records):
        raise _damaged(path, "two images have one id")
    return records


def _read(path: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_json(read_bytes(path))
    except ValidationError as problem:
        raise _damaged(path, describe_validation_error(problem)[0]) from None


def _damaged(path: Path, reason: str) -> SesamError:
    return SesamError(
        f"{path} is damaged ({reason}). Run `dvc repro prepare`, or `dvc checkout` if a colleague made it."
    )


def load_image(record: ImageRecord) -> np.ndarray:
    """An image, (H, W, 3) uint8 RGB; SesamError if it is missing, or not the file that `prepare` read."""
    path = Path(record.image)
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() == record.sha256:
        image = read_image(path, content)
        if image.shape[:2] == (record.height, record.width):
            return image
    raise SesamError(
        f"{path} has changed since `prepare` read it: its labels and embeddings are of another image. Run `dvc repro`, "
        "which prepares it again, or restore the old file."
    )


def load_label(folder: str | Path, record: ImageRecord, num_values: int = 256, unlabeled: bool = True) -> np.ndarray:
    """An image's PNG in an artifact, folder/ID.png, (H, W) uint8.

    SesamError for another size than the image's, or values other than 0 to num_values - 1 and, if unlabeled, 255.
    """
    path = Path(folder, f"{record.id}.png")
    label = read_label(path)
    unknown = label >= num_values
    if unlabeled:
        unknown &= label != IGNORE_INDEX
    if label.shape != (record.height, record.width):
        reason = f"is {label.shape[1]}x{label.shape[0]} pixels, its image {record.width}x{record.height}"
    elif unknown.any():
        ignored = f", and {IGNORE_INDEX} for none" * unlabeled
        reason = f"holds {label[unknown].min()}; expected are 0 to {num_values - 1}{ignored}"
    else:
        return label
    raise SesamError(f"{path} {reason}. Delete {path_to_delete(path)} and run `dvc repro`.")


def load_fine_label(split: str, record: ImageRecord, num_classes: int) -> np.ndarray:
    """An image's fine label, (H, W) uint8; all 255 if the data set has none for it."""
    if not record.has_fine_label:
        return np.full((record.height, record.width), IGNORE_INDEX, np.uint8)
    return load_label(FINE_LABELS / split, record, num_classes)


def load_predictions(round_name: str, record: ImageRecord, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes and confidence of a round's teacher, both (H, W) uint8."""
    folder = round_dir(round_name, "teacher_predictions")
    return load_label(folder / "labels", record, num_classes), load_label(folder / "confidence", record)
