"""Check a data set as its maker ships it, bring its labels to class ids, 255 = none, and tell what a run will cost.

Images stay where they are; the manifest says where. Everything that is wrong is reported at once, and then
nothing is written.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.manifest import SPLITS, Dataset
from sesam.datasets.checks import (
    MAX_COUNTED,
    CheckResult,
    _sample_evenly,
    check_pair,
    collect_warnings,
    color_wheel,
    estimate_cost,
    find_duplicates,
    find_images,
    parse_color,
    symlinked_dirs,
)
from sesam.datasets.class_statistics import class_table
from sesam.datasets.data_issues import (
    VALUES,
    format_issues,
)
from sesam.datasets.label_maps import class_names_and_palette, label_map_for
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.params import load_params
from sesam.paths import FINE
from sesam.sam.registry import get_model


def main() -> None:
    params = load_params()
    dataset, embedding_bytes = params.dataset, get_model(params.sam.model).embedding_bytes
    if dataset.classes is not None:  # a folder's, as the params were checked for
        classes = dataset.classes
        palette = [parse_color(color) for color in dataset.palette or []] or color_wheel(len(classes))
    else:
        classes, palette = class_names_and_palette(dataset.format)
    ignore_values = [IGNORE_INDEX] if dataset.ignore_values is None else dataset.ignore_values
    meaning = label_map_for(dataset.format, len(classes), ignore_values)
    pairs = find_images(dataset)
    counted = {
        "train": _sample_evenly([pair.id for pair in pairs["train"] if pair.label], MAX_COUNTED),
        "val": frozenset(),
    }
    found: dict[str, list[CheckResult]] = {}
    with atomic_directory(FINE / "train") as train, atomic_directory(FINE / "val") as val:
        for split, folder in (("train", train), ("val", val)):
            check = partial(
                check_pair,
                counted=counted[split],
                folder=folder,
                meaning=meaning,
                palette=palette,
                config=params.components,
            )
            found[split] = map_images(check, pairs[split], params.runtime, f"prepare {split}")
        items = {split: [one.item for one in found[split] if one.item] for split in SPLITS}
        leaked, twice = find_duplicates(items)
        if faults := [fault for split in SPLITS for one in found[split] for fault in one.faults] + leaked:
            said = format_issues(f"{dataset.root} (dataset.root)", faults)
            if any(kind == VALUES for kind, _ in faults):
                said += f"\n  Values with a meaning: {meaning.values()}."
            raise SesamError(said)
        if not any(one.classes for one in found["val"]):
            raise SesamError(f"{dataset.root}: no class occurs in the labels to validate on. See dataset.val.")
    name = Path(dataset.root).name
    train_items, val_items = (tuple(items[split]) for split in SPLITS)
    Dataset(name, tuple(classes), tuple(palette), train_items, val_items, dataset.format, tuple(ignore_values)).save()
    files = [file for split in SPLITS for pair in pairs[split] for file in (pair.image, pair.label) if file]
    behind = symlinked_dirs(Path(dataset.root), files)
    for line in collect_warnings(found["train"], twice, classes, behind, params):
        print(f"warning: {line}", file=sys.stderr)
    print(f"prepare: {len(items['train'])} training images, {len(items['val'])} to validate on")
    if counts := [one.counts for one in found["train"] if one.counts is not None]:
        print("  fine labels to train on:", *class_table(np.stack(counts), classes), sep="\n    ")
    print("  a run takes")
    for line in estimate_cost(found["train"], params, embedding_bytes):
        print(f"    {line}")


if __name__ == "__main__":
    run_main(main)
