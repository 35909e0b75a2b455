"""From the params to a SAM with its weights: fetched once a machine, checked before every use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pooch

from sesam.artifacts.atomic_io import sha256
from sesam.errors import SesamError
from sesam.params import Params, SamParams
from sesam.sam.registry import get_model

if TYPE_CHECKING:
    from sesam.sam.segmenter import Segmenter


def download(name: str) -> Path:
    """The path of a model's published weights, fetched if they are not there; SesamError if they cannot be had."""
    model = get_model(name)
    if model.url is None:
        raise SesamError(f"{name} has no weights that are fetched.")
    if "://" not in model.url:
        return Path(model.url)
    folder, file = pooch.os_cache("sesam"), model.url.rsplit("/", 1)[1]
    try:
        return Path(pooch.retrieve(model.url, f"sha256:{model.sha256}", fname=file, path=folder, progressbar=True))
    except (OSError, ValueError) as problem:  # no network; not the published bytes
        raise SesamError(
            f"{model.url} cannot be fetched ({problem}). Fetch it elsewhere, and set sam.checkpoint and sam.sha256."
        ) from None


def resolve_weights(sam: SamParams) -> tuple[Path | None, str]:
    """The file with the model's weights, fetched if it is published and missing, and their SHA-256.

    None and an empty text for a model without weights. SesamError if the file is missing or is not the one
    that the params name.
    """
    model = get_model(sam.model)
    if model.url is None and not model.needs_checkpoint:
        return None, ""
    if model.url is None and sam.checkpoint is None:
        raise SesamError(
            f"params.yaml: sam.model {sam.model} has weights that are not fetched. Set sam.checkpoint to the "
            "model.safetensors in its folder, and sam.sha256."
        )
    path = download(sam.model) if sam.checkpoint is None else Path(sam.checkpoint)
    expected = sam.sha256 or model.sha256
    if not path.is_file():
        raise SesamError(f"{path} (sam.checkpoint) is missing. Put it there, or set sam.checkpoint to null: published.")
    try:
        found = sha256(path)
    except OSError as problem:
        raise SesamError(f"{path} (sam.checkpoint) cannot be read: {problem.strerror}.") from None
    if found != expected:
        of = "published " if sam.sha256 is None else ""
        raise SesamError(
            f"{path} has SHA-256 {found}; expected of the {of}{sam.model}: {expected}. For weights of your own set "
            "sam.checkpoint and sam.sha256, for the published ones both to null."
        )
    return path, found


def load_segmenter(params: Params) -> Segmenter:
    """The model that the params name, on the device that they name; SesamError if it cannot be had."""
    import torch  # which no other function here takes

    from sesam.execution.device import resolve_device

    torch.backends.cudnn.allow_tf32 = False  # a GPU's convolutions in float32 would have the digits of float16
    weights, _ = resolve_weights(params.sam)
    return get_model(params.sam.model).load(weights, resolve_device(params.runtime), params.sam, params.runtime)
