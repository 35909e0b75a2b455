"""What the exports of annotation tools have in common: whose image a name means, and what may stand in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import unquote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e7, le=1e7)]
Point = tuple[Number, Number]  # x, y
ENDINGS = ("_leftImg8bit",)  # of image files, where the id is shorter
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of a file


class Entry(BaseModel):
    """A mapping of which more keys are read over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def match_image_id(name: str, ids: Collection[str]) -> str | None:
    """Which image a tool's name means: the longest end of its path that is an id; None if there is none."""
    # an address: what Label Studio serves from its disk stands behind ?d=, a signature behind another ?
    path = PurePosixPath(unquote(name).replace("\\", "/").split("?d=")[-1].split("?")[0])
    stem = path.stem
    for end in ENDINGS:
        stem = stem.removesuffix(end)
    for last in dict.fromkeys((stem, path.stem, path.name)):
        parts = [*path.parent.parts, last]
        for first in range(len(parts)):
            if (candidate := "/".join(parts[first:])) in ids:
                return candidate
    uploaded = UPLOADED.sub("", stem)  # into a folder of Label Studio's own
    return uploaded if uploaded in ids else None


def runs_to_mask(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """The pixels (height, width) bool, row by row, of run lengths, the first of no mask.

    ValueError if they do not fit that size.
    """
    # Python's own sum: NumPy's would wrap around to what fits
    if not counts or min(counts) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths that do not fit {width}x{height} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
