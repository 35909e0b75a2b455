"""Fetch an official SAM checkpoint from Meta: python -m stages.fetch_sam vit_h [PATH]"""

from __future__ import annotations

import argparse
import shutil
import urllib.request
from pathlib import Path

from tqdm import tqdm

from stages.common.errors import SesamError, run_stage
from stages.common.files import sha256, whole
from stages.sam.models import MODELS


def main() -> None:
    official = {name: model for name, model in MODELS.items() if model.address}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=official)
    parser.add_argument("path", nargs="?", type=Path, help="where to put it; models/ and its own name if not given")
    arguments = parser.parse_args()
    name = arguments.model
    address = official[name].address
    path = arguments.path or Path("models") / address.rsplit("/", 1)[1]
    if not path.exists() or sha256(path) != official[name].sha256:
        try:
            with whole(path) as beside:
                with urllib.request.urlopen(address) as answer, beside.open("wb") as file:
                    size = int(answer.headers.get("Content-Length", 0))
                    with tqdm.wrapattr(answer, "read", total=size, desc=path.name) as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                if sha256(beside) != official[name].sha256:
                    raise SesamError(
                        f"{address} did not answer with the official {name}. Try again, or another network."
                    )
        except OSError as problem:
            raise SesamError(
                f"{address} cannot be fetched ({problem}). Fetch it elsewhere and put it at {path}."
            ) from None
    print(f"{path} is the official {name}. Set sam.model={name} sam.checkpoint={path}")


if __name__ == "__main__":
    run_stage(main)
