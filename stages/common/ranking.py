"""A round's ranking.csv: its training images, those that most need a look first (`evaluate_labels` writes it)."""

from __future__ import annotations

import csv
import io

from stages.common.dataset import Dataset, Item
from stages.common.errors import SesamError
from stages.common.files import read_bytes
from stages.common.folders import RANKING, pseudo_labels


def worst(name: str, data: Dataset, count: int) -> list[Item]:
    """The first `count` training images of the round's ranking.

    SesamError if the file cannot be read, or ranks images that the data set does not have.
    """
    path = pseudo_labels(name) / RANKING
    try:
        ids = [row["id"] for row in csv.DictReader(io.StringIO(read_bytes(path).decode()))][:count]
    except (UnicodeDecodeError, KeyError, csv.Error):
        raise SesamError(f"{path} is no ranking. Run `dvc repro`, which writes it.") from None
    items = {item.id: item for item in data.train}
    if unknown := [k for k in ids if k not in items]:
        raise SesamError(f"{path} ranks {unknown[0]!r}, which is no training image. Run `dvc repro`.")
    return [items[k] for k in ids]
