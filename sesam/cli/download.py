"""Fetch a published SAM ahead of time, for machines without a network: python -m sesam.cli.download vit_h

The stages fetch what they need themselves, once a machine: the file lies in the user's cache folder (under
XDG_CACHE_HOME, if that is set) and is checked against its published SHA-256.
"""

from __future__ import annotations

import argparse

from sesam.errors import run_main
from sesam.sam.checkpoints import download
from sesam.sam.registry import MODELS


def main() -> None:
    official = [name for name, model in MODELS.items() if "://" in (model.url or "")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=official)
    name = parser.parse_args().model
    print(f"{download(name)} is the published {name}. Set sam.model to {name}, sam.checkpoint and sam.sha256 to null.")


if __name__ == "__main__":
    run_main(main)
