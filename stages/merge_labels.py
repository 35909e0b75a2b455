"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import whole_folder
from sesam.artifacts.component_records import read_selected
from sesam.artifacts.invariants import check_complete, check_merged
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.manifest import Dataset, Item, item_label, item_predictions
from sesam.artifacts.sources import SOURCE_PALETTE
from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.execution.parallel import per_image
from sesam.labels import UNLABELLED, confident_labels
from sesam.merging import merge
from sesam.params import Params
from sesam.paths import WEAK_LABELS, of_round, pseudo_labels


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
