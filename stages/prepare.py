"""Check a data set in its original layout, write its labels as class ids, 255 = none, and estimate what a run costs.

Images stay in place; the manifest has their paths. All issues are reported at once, and then nothing is written.
"""

import sys

import numpy as np

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.manifest import save_unused
from sesam.datasets.checks import estimate_cost
from sesam.datasets.class_statistics import class_table
from sesam.datasets.importer import find_images, import_dataset
from sesam.errors import run_main
from sesam.params import load_params
from sesam.paths import FINE_LABELS
from sesam.sam.registry import get_model


def main() -> None:
    params = load_params()
    embedding_bytes = get_model(params.sam.model).embedding_bytes
    pairs, unused = find_images(params.dataset)
    with atomic_directory(FINE_LABELS / "train") as train, atomic_directory(FINE_LABELS / "val") as val:
        manifest, results, warnings = import_dataset(pairs, {"train": train, "val": val}, params)
    manifest.save()
    save_unused(unused)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"prepare: {len(manifest.train)} training images, {len(manifest.val) or 'no'} validation images")
    for split, of_split in results.items():
        if counts := [result.counts for result in of_split if result.counts is not None]:
            print(f"  {split}: check these shares; a mis-mapped label id shows up here")
            print(*(f"    {line}" for line in class_table(np.stack(counts), manifest.classes)), sep="\n")
    print("  a run takes")
    print(*(f"    {line}" for line in estimate_cost(results["train"], params, embedding_bytes)), sep="\n")


if __name__ == "__main__":
    run_main(main)
