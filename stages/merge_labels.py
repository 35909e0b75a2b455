"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.component_records import read_selected
from sesam.artifacts.invariants import check_complete, check_merged
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_label, load_predictions
from sesam.artifacts.sources import SOURCE_PALETTE
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.merging import merge
from sesam.params import Params, parse_round
from sesam.paths import WEAK_LABELS, pseudo_label_dir, round_dir


def process(
    item: ImageRecord, labels_folder: Path, sources_folder: Path, name: str, params: Params, palette: Palette
) -> None:
    weak = load_label(WEAK_LABELS, item, len(palette))
    predicted, confidence = load_predictions(name, item, len(palette))
    filling = confident_labels(predicted, confidence, params.teacher_labels.confidence_threshold)
    if not params.rounds[name].fill_confident:
        filling[:] = IGNORE_INDEX
    selected = read_selected(round_dir(name, "selected") / f"{item.id}.json", item, len(palette))
    labels, sources = merge(weak, filling, selected)
    write_label(labels_folder / f"{item.id}.png", labels, palette)
    write_label(sources_folder / f"{item.id}.png", sources, SOURCE_PALETTE)
    check_merged(labels_folder, sources_folder, item, len(palette), weak, filling)


def main() -> None:
    name, params = parse_round(__doc__)
    dataset, folder = Dataset.load(), pseudo_label_dir(name)
    with atomic_directory(folder / "labels") as labels, atomic_directory(folder / "sources") as sources:
        work = partial(
            process, labels_folder=labels, sources_folder=sources, name=name, params=params, palette=dataset.palette
        )
        map_images(work, dataset.train, params.runtime, f"merge_labels {name}")
        check_complete(labels, dataset.train)
        check_complete(sources, dataset.train)


if __name__ == "__main__":
    run_main(main)
