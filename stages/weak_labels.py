"""Weak labels: coarse polygons, scribbles, points or boxes, simulated from fine labels or drawn by annotators.

`weak_labels.kind: fine` gives the fine labels themselves, for comparison with full supervision.

A simulated label never holds a pixel of another class, and every region of at least `weak_labels.min_area` pixels gets
one. With another `weak_labels.path` annotators' labels are converted to class ids, and fine labels are not read.
Corrections in data/corrections are written over either. metrics/annotations.json counts annotators' shapes.
"""

from collections import Counter
from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.drawn_prompts import write_drawn_prompts
from sesam.artifacts.image_io import Palette, write_label
from sesam.artifacts.invariants import check_complete, check_labels
from sesam.artifacts.manifest import ImageRecord, Manifest, load_label
from sesam.datasets.annotation_importer import import_annotations, warn_unread_files
from sesam.datasets.annotations.registry import is_annotated
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.params import FINE_TRAIN_LABELS, WeakLabelParams, load_params
from sesam.paths import CORRECTIONS, METRICS, WEAK_LABELS
from sesam.simulation import simulate_boxes, simulate_weak_label


def simulate(record: ImageRecord, folder: Path, config: WeakLabelParams, palette: Palette) -> None:
    fine = load_label(FINE_TRAIN_LABELS, record, len(palette))
    label = simulate_weak_label(fine, config)
    check_labels(label, record, len(palette))
    write_label(folder / f"{record.id}.png", label, palette)
    write_drawn_prompts(folder, record, simulate_boxes(fine, config))


def main() -> None:
    params, manifest = load_params(), Manifest.load()
    config, shapes = params.weak_labels, Counter[str]()
    with atomic_directory(WEAK_LABELS) as folder:
        if config.path != FINE_TRAIN_LABELS:
            shapes += import_annotations(manifest, Path(config.path), folder, params)
        elif unlabeled := [record.id for record in manifest.train if not record.has_fine_label]:
            raise SesamError(
                f"{len(unlabeled)} training images have no fine labels to simulate weak labels from (example: "
                f"{unlabeled[0]}). Add them, leave the images out (dataset.exclude), or set weak_labels.path to "
                "annotators' labels (Cityscapes: its gtCoarse)."
            )
        else:
            work = partial(simulate, folder=folder, config=config, palette=manifest.palette)
            map_images(work, manifest.train, params.runtime, "weak_labels")
        if is_annotated(CORRECTIONS):
            shapes += import_annotations(manifest, CORRECTIONS, folder, params, as_corrections=True)
        else:
            warn_unread_files(CORRECTIONS, manifest)
        check_complete(folder, manifest.train)
        write_json(METRICS / "annotations.json", dict(sorted(shapes.items())))


if __name__ == "__main__":
    run_main(main)
