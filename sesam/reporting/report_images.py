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
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sesam.artifacts.atomic_io import read_bytes, write_json
from sesam.artifacts.image_io import full_palette
from sesam.artifacts.sources import NONE, SOURCE_PALETTE
from sesam.errors import SesamError, describe_validation_error
from sesam.labels import IGNORE_INDEX
from sesam.reporting.layout import Color, Kind, Step, downscale

LAYERS = (  # in the order of their buttons; an image without a teacher or a fine label has fewer
    *("image", "fine", "weak", "boxes", "teacher", "teacher's confidence"),
    *("SAM's masks", "pseudo-label", "source", "student", "student's confidence"),
)
SIDE = 640  # pixels of a picture's longer side, at most
_DataUrl = Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$")]  # it leads nowhere else


@dataclass(frozen=True)
class Layer:
    """One of an image's layers. kind: whose colors it has. confidence: below what the layer is made pale."""

    name: str
    kind: Kind
    picture: _DataUrl
    confidence: _DataUrl | None = None


@dataclass(frozen=True)
class ReportImage:
    """A training image. components: what became of each, in words."""

    id: str
    layers: Annotated[list[Layer], Field(min_length=1)]
    components: list[str]


_IMAGES = TypeAdapter(list[ReportImage], config=ConfigDict(extra="forbid"))


def write_report_images(path: Path, images: Sequence[ReportImage]) -> None:
    write_json(path, [asdict(image) for image in images])


def read_report_images(path: Path) -> list[ReportImage]:
    """A round's images; SesamError if the file holds anything else than `write_report_images` writes."""
    try:
        return _IMAGES.validate_json(read_bytes(path))
    except ValidationError as problem:
        reason = describe_validation_error(problem)[0]
        raise SesamError(f"{path} is damaged ({reason}). Run `dvc repro panels`.") from None


def layer(step: Step, palette: Sequence[Color]) -> Layer:
    """A step as a layer. palette: of the classes."""
    if step.values.ndim == 3 or step.kind == "confidence":
        picture = data_url(step.values)
    elif step.kind == "sources":
        picture = data_url(step.values, SOURCE_PALETTE, transparent=NONE)
    else:
        picture = data_url(step.values, palette, transparent=IGNORE_INDEX)
    return Layer(step.name, step.kind, picture, None if step.confidence is None else data_url(step.confidence))


def data_url(pixels: np.ndarray, palette: Sequence[Color] | None = None, transparent: int | None = None) -> str:
    """The data URL of (H, W, 3) uint8 RGB as a JPEG, or of (H, W) uint8 as a PNG, gray or with a palette."""
    small = downscale(pixels, SIDE, cv2.INTER_AREA if pixels.ndim == 3 else cv2.INTER_NEAREST)
    picture, file = Image.fromarray(small), io.BytesIO()
    if palette is not None:
        picture.putpalette(full_palette(palette).tobytes())
    form = "jpeg" if pixels.ndim == 3 else "png"
    picture.save(file, form, quality=85, optimize=form == "png", transparency=transparent)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
