"""The SAM models that `sam.model` can name.

A model is anything that encodes images and decodes prompts (`Segmenter`); a new
one is one more entry of `MODELS`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from stages.common import labels
from stages.common.device import pick_device
from stages.common.errors import SesamError
from stages.common.files import code_of, fingerprint, sha256
from stages.common.params import Params, Precision, Runtime, SamParams
from stages.sam.embedded import IMAGE_SIZE, STRIDE, WIDTH, build_embedded_sam
from stages.sam.engine import SamSegmenter
from stages.sam.segmenter import Segmenter
from stages.sam.superpixels import SCALES, SIDE, Superpixels


def load_sam(
    build: Callable[[], Sam],
    checkpoint: Path,
    device: torch.device,
    precision: Precision = "float32",
    runtime: Runtime | None = None,
) -> SamSegmenter:
    """A Sam with the weights of a state dict; SesamError if they do not fit. The rest as SamSegmenter's."""
    sam = build()
    try:
        sam.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise SesamError(
            f"{checkpoint} does not hold the weights of sam.model ({reason}). Check sam.checkpoint."
        ) from None
    return SamSegmenter(sam, device, precision, runtime)


@dataclass(frozen=True)
class Model:
    """How to load a model; for a published one the SHA-256 that its checkpoint must have, and its address."""

    load: Callable[..., Segmenter]  # called as load_sam is, without `build`
    embedding_bytes: int  # an image's, on disk
    sha256: str | None = None
    address: str | None = None
    weights: bool = True  # false: it has none, and sam.checkpoint is not read


_VIT_BYTES = 2 * 256 * 64**2  # float16, 256 channels on a grid of 64 x 64
_META = "https://dl.fbaipublicfiles.com/segment_anything/"
MODELS = {
    "embedded": Model(partial(load_sam, build_embedded_sam), 2 * WIDTH * (IMAGE_SIZE // STRIDE) ** 2),
    "vit_b": Model(
        partial(load_sam, sam_model_registry["vit_b"]),
        _VIT_BYTES,
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        _META + "sam_vit_b_01ec64.pth",
    ),
    "vit_l": Model(
        partial(load_sam, sam_model_registry["vit_l"]),
        _VIT_BYTES,
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        _META + "sam_vit_l_0b3195.pth",
    ),
    "vit_h": Model(
        partial(load_sam, sam_model_registry["vit_h"]),
        _VIT_BYTES,
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        _META + "sam_vit_h_4b8939.pth",
    ),
    "superpixels": Model(Superpixels, 2 * len(SCALES) * SIDE**2, weights=False),  # no SAM: the null hypothesis
}


def model_named(name: str) -> Model:
    """The entry of MODELS; SesamError if there is none."""
    if name not in MODELS:
        raise SesamError(f"params.yaml: sam.model is {name!r}; known are {', '.join(MODELS)}.")
    return MODELS[name]


def check_checkpoint(name: str, checkpoint: Path) -> str:
    """The checkpoint's SHA-256; SesamError if it is missing or not the official file of an official model.

    Empty for a model without weights.
    """
    model = model_named(name)
    if not model.weights:
        return ""
    how = f"Fetch it with `python -m stages.fetch_sam {name}`." if model.address else "Restore it from git."
    if not checkpoint.is_file():
        raise SesamError(f"{checkpoint} (sam.checkpoint) is missing. {how}")
    digest = sha256(checkpoint)
    if model.sha256 and digest != model.sha256:
        raise SesamError(
            f"{checkpoint} is not the official {name} checkpoint: SHA-256 {digest}, not {model.sha256}. {how}"
        )
    return digest


def load_segmenter(params: Params) -> Segmenter:
    """The model that the params name, on the device that they name; SesamError if there is none."""
    sam, runtime = params.sam, params.runtime
    return MODELS[sam.model].load(Path(sam.checkpoint), pick_device(runtime), sam.precision, runtime)


def engine_fingerprint(sam: SamParams) -> str:
    """What an embedding or a mask depends on besides image and prompts: weights, and the code that runs them."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    return fingerprint(
        sam.model,
        sam.precision,
        check_checkpoint(sam.model, Path(sam.checkpoint)),
        [sha256(file) for file in code],
        code_of(labels),
    )
