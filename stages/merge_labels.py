"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sesam.command_line import round_of_command_line
from sesam.artifacts.component_records import read_selected
from sesam.artifacts.manifest import Dataset, Item, item_label, item_predictions
from sesam.errors import run_stage
from sesam.artifacts.atomic_io import whole_folder
from sesam.paths import WEAK_LABELS, of_round, pseudo_labels
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.invariants import broken, check_classes, check_complete
from sesam.labels import UNLABELLED, confident_labels
from sesam.geometry.rle import decode_mask, largest_first
from sesam.execution.parallel import per_image
from sesam.params import Params
from sesam.artifacts.sources import CONFIDENT, NONE, SAM, SOURCE_PALETTE, WEAK


def merge(weak: np.ndarray, filling: np.ndarray, selected: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels and their sources, both (H, W) uint8.

    weak: (H, W) uint8 class ids, 255 = unlabelled. filling: the same of the teacher's confident predictions.
    selected: the components as select_masks wrote them. Kept masks are painted in `largest_first`; then
    weak labels are restored, and pixels that are still empty take `filling`.
    """
    labels, sources = np.full_like(weak, UNLABELLED), np.full_like(weak, NONE)
    kept = [component for component in selected if component["candidate"] is not None]
    for component in largest_first(kept, weak.shape):
        mask = decode_mask(component["rle"], weak.shape)
        labels[mask], sources[mask] = component["class"], SAM
    labelled = weak != UNLABELLED
    labels[labelled], sources[labelled] = weak[labelled], WEAK
    empty = (labels == UNLABELLED) & (filling != UNLABELLED)
    labels[empty], sources[empty] = filling[empty], CONFIDENT
    return labels, sources


def check_merged(
    labels_folder: Path, sources_folder: Path, item: Item, classes: int, weak: np.ndarray, filling: np.ndarray
) -> None:
    """SesamError unless an image's labels and sources, as they lie on the disk, fit each other and their origins.

    weak, filling: (H, W) uint8 weak labels and confident predictions, 255 = none.
    """
    labels = check_classes(labels_folder, item, classes)
    sources = item_label(sources_folder, item)
    drawn = weak != UNLABELLED
    confident = sources == CONFIDENT
    for holds, what in (
        (np.isin(sources, (NONE, WEAK, SAM, CONFIDENT)).all(), "a source that is none"),
        ((labels[drawn] == weak[drawn]).all(), "a weak label that was changed"),
        (((sources == WEAK) == drawn).all(), "a weak label without its source, or the source without one"),
        (((sources == NONE) == (labels == UNLABELLED)).all(), "a label without a source, or a source without a label"),
        ((labels[confident] == filling[confident]).all(), "a confident prediction that is none"),
    ):
        if not holds:
            raise broken(sources_folder / f"{item.id}.png", what)


def process(item: Item, labels_folder: Path, sources_folder: Path, name: str, params: Params, palette: Palette) -> None:
    weak = item_label(WEAK_LABELS, item, len(palette))
    predicted, confidence = item_predictions(name, item, len(palette))
    filling = confident_labels(predicted, confidence, params.augment.confidence)
    if not params.rounds[name].labels:
        filling[:] = UNLABELLED
    selected = read_selected(of_round(name, "selected") / f"{item.id}.json", item, len(palette))
    labels, sources = merge(weak, filling, selected)
    write_label(labels_folder / f"{item.id}.png", labels, palette)
    write_label(sources_folder / f"{item.id}.png", sources, SOURCE_PALETTE)
    check_merged(labels_folder, sources_folder, item, len(palette), weak, filling)


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset, folder = Dataset.load(), pseudo_labels(name)
    with whole_folder(folder / "labels") as labels, whole_folder(folder / "sources") as sources:
        work = partial(
            process, labels_folder=labels, sources_folder=sources, name=name, params=params, palette=dataset.palette
        )
        per_image(work, dataset.train, params.runtime, f"merge_labels {name}")
        check_complete(labels, dataset.train)
        check_complete(sources, dataset.train)


if __name__ == "__main__":
    run_stage(main)
