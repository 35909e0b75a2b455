"""A round's ranking.csv: its training images, those that most need a look first (`evaluate_labels` writes it)."""

import csv
import io

from sesam.artifacts.atomic_io import read_bytes
from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.errors import SesamError
from sesam.paths import RANKING, pseudo_label_dir


def top_ranked(round_name: str, manifest: Manifest, count: int) -> list[ImageRecord]:
    """The first `count` images of a round's ranking; SesamError if it does not rank the training images, each once."""
    path = pseudo_label_dir(round_name) / RANKING
    try:
        # `csv_path` wrote them
        ids = [
            row["id"].removeprefix("./") for row in csv.DictReader(io.StringIO(read_bytes(path).decode()), restval="")
        ]
    except (UnicodeDecodeError, KeyError, csv.Error):
        raise SesamError(f"{path} is not a ranking. Run `dvc repro`, which writes it.") from None
    records = {record.id: record for record in manifest.train}
    if sorted(ids) != sorted(records):
        raise SesamError(f"{path} does not rank the {len(records)} training images, each once. Run `dvc repro`.")
    return [records[image_id] for image_id in ids[:count]]
