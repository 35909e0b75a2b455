"""Download a published SAM ahead of time, for machines without a network.

    sesam download vit_h

The pipeline downloads what it needs by itself. The file goes to the user's cache folder (below XDG_CACHE_HOME, if that
is set) and is checked against its published SHA-256.
"""

import argparse

from sesam.sam.checkpoints import download
from sesam.sam.registry import MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    published = [model for model, entry in MODELS.items() if isinstance(entry.url, str)]
    parser.add_argument("model", choices=published, help="the model, as sam.model in params.yaml")


def run(options: argparse.Namespace) -> None:
    model = options.model
    print(
        f"{download(model)} is the published {model}. Set sam.model to {model}, sam.checkpoint and sam.sha256 to null."
    )
