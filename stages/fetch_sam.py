"""Fetch a published SAM ahead of time, for machines without a network: python -m stages.fetch_sam vit_h

The stages fetch what they need themselves, once a machine: the file lies in the user's cache folder (under
XDG_CACHE_HOME, if that is set) and is checked against its published SHA-256.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pooch

from stages.common.errors import SesamError, run_stage
from stages.sam.models import MODELS, model_named


def fetch(name: str) -> Path:
    """The path of a model's published weights, fetched if they are not there; SesamError if they cannot be had."""
    model = model_named(name)
    if model.address is None:
        raise SesamError(f"{name} has no weights to fetch.")
    if "://" not in model.address:
        return Path(model.address)
    folder, file = pooch.os_cache("sesam"), model.address.rsplit("/", 1)[1]
    try:
        return Path(pooch.retrieve(model.address, f"sha256:{model.sha256}", fname=file, path=folder, progressbar=True))
    except (OSError, ValueError) as problem:  # no network; not the published bytes
        raise SesamError(
            f"{model.address} cannot be fetched ({problem}). Fetch it elsewhere, and set sam.checkpoint and sam.sha256."
        ) from None


def main() -> None:
    official = [name for name, model in MODELS.items() if "://" in (model.address or "")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=official)
    name = parser.parse_args().model
    print(f"{fetch(name)} is the published {name}. Set sam.model to {name}, sam.checkpoint and sam.sha256 to null.")


if __name__ == "__main__":
    run_stage(main)
