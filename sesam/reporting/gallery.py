"""Images as layers inside of a page: what `panels` writes for `report`, small enough to be shown by the dozen."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
from PIL import Image
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.label_png import full_palette
from sesam.artifacts.sources import NONE, SOURCE_PALETTE
from sesam.errors import SesamError, describe_validation_error
from sesam.labels import IGNORE_INDEX
from sesam.reporting.pages import Color, Kind, Step

LAYERS = (  # in the order of their buttons; an image without a teacher or a fine label has fewer
    *("image", "fine", "weak", "teacher", "teacher's confidence"),
    *("SAM's masks", "merged", "source", "student", "student's confidence"),
)
SIDE = 640  # pixels of a picture's longer side, at most
_STRICT = ConfigDict(extra="forbid")
_DataUrl = Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$")]  # it leads nowhere else


@with_config(_STRICT)
@dataclass(frozen=True)
class Layer:
    """One of an image's layers. kind: whose colors it has. confidence: below what the layer is made pale."""

    name: str
    kind: Kind
    picture: _DataUrl
    confidence: _DataUrl | None = None


@with_config(_STRICT)
@dataclass(frozen=True)
class GalleryImage:
    """A training image. components: what became of each, in words."""

    id: str
    layers: Annotated[list[Layer], Field(min_length=1)]
    components: list[str]


def write_gallery(path: Path, images: Sequence[GalleryImage]) -> None:
    write_json(path, [asdict(image) for image in images])


def read_gallery(path: Path) -> list[GalleryImage]:
    """A round's images; SesamError if the file holds anything else than `write_gallery` writes."""
    try:
        return TypeAdapter(list[GalleryImage]).validate_json(read_bytes(path))
    except ValidationError as problem:
        reason = describe_validation_error(problem)[0]
        raise SesamError(f"{path} is damaged ({reason}). Run `dvc repro panels`.") from None


def layer(step: Step, palette: Sequence[Color]) -> Layer:
    """A step as a layer. palette: of the classes."""
    if step.values.ndim == 3:
        picture = photo_url(step.values)
    elif step.kind == "confidence":
        picture = gray_url(step.values)
    elif step.kind == "sources":
        picture = label_url(step.values, SOURCE_PALETTE, NONE)
    else:
        picture = label_url(step.values, palette, IGNORE_INDEX)
    return Layer(step.name, step.kind, picture, None if step.confidence is None else gray_url(step.confidence))


def photo_url(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as the data URL of a JPEG."""
    return _url(Image.fromarray(_smaller(pixels, cv2.INTER_AREA)), "JPEG", quality=85)


def label_url(values: np.ndarray, palette: Sequence[Color], nothing: int) -> str:
    """(H, W) uint8 in its colors as the data URL of a PNG; the value `nothing` is transparent."""
    picture = Image.fromarray(_smaller(values, cv2.INTER_NEAREST), mode="P")
    picture.putpalette(full_palette(palette).tobytes())
    return _url(picture, "PNG", transparency=nothing, optimize=True)


def gray_url(values: np.ndarray) -> str:
    """(H, W) uint8 as the data URL of a PNG."""
    return _url(Image.fromarray(_smaller(values, cv2.INTER_NEAREST)), "PNG", optimize=True)


def _smaller(pixels: np.ndarray, interpolation: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    longer = max(height, width)
    if longer <= SIDE:
        return np.ascontiguousarray(pixels)
    size = (max(1, width * SIDE // longer), max(1, height * SIDE // longer))
    return cv2.resize(pixels, size, interpolation=interpolation)


def _url(picture: Image.Image, form: str, **options: int | bool) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
