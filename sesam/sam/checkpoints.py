"""The weights of the params' SAM, downloaded once per machine and verified."""

from pathlib import Path
from typing import NamedTuple

from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.downloads import fetch
from sesam.errors import SesamError
from sesam.params import SamParams
from sesam.sam.registry import get_model


class Weights(NamedTuple):
    """A verified file of weights and its SHA-256; None and "" for a model without weights."""

    path: Path | None
    sha256: str


def download(model_name: str) -> Path:
    """The path of a model's published weights, downloaded if missing; SesamError if that fails."""
    model = get_model(model_name)
    if isinstance(model.url, Path):
        return model.url
    if model.url is None:
        raise SesamError(
            f"sam.model {model_name} has no weights to download. Set sam.checkpoint to the model.safetensors in its "
            "folder, and sam.sha256."
        )
    try:
        return fetch(model.url, model.sha256, model.url.rsplit("/", 1)[1])
    except (OSError, ValueError) as problem:  # no network; other bytes than the published ones
        raise SesamError(
            f"{model.url} cannot be downloaded ({problem}). Download it elsewhere, and set sam.checkpoint and "
            "sam.sha256."
        ) from None


def resolve_weights(sam: SamParams) -> Weights:
    """The weights: `sam.checkpoint` or the published ones; SesamError if the file is missing or has another SHA-256.

    Reads the whole file, so a process does this once.
    """
    model = get_model(sam.model)
    if model.url is None and not model.needs_checkpoint:
        return Weights(None, "")
    path = Path(sam.checkpoint) if sam.checkpoint is not None else download(sam.model)
    if sam.checkpoint is None and isinstance(model.url, str):
        return Weights(path, model.sha256)  # `download` has verified it
    try:
        digest = sha256(path)
    except OSError as problem:
        raise SesamError(
            f"{path} (sam.checkpoint) cannot be read: {problem.strerror}. Put it there, or set sam.checkpoint to null: "
            "published."
        ) from None
    if digest != (expected := sam.sha256 or model.sha256):
        raise SesamError(
            f"{path} has SHA-256 {digest}; expected for {sam.model}: {expected}. For custom weights set sam.checkpoint "
            "and sam.sha256, for the published ones both to null."
        )
    return Weights(path, digest)
