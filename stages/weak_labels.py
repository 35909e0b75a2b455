"""Weak labels: coarse polygons, scribbles, points or boxes, simulated from fine labels or drawn by annotators.

The kind `fine` gives an image its fine label, `none` no label; data/supervision.json has the kind of each image.

A simulated label never holds a pixel of another class, and every region of at least `weak_labels.min_area` pixels gets
one. With another `weak_labels.path` annotators' labels are converted to class ids; images without any take their fine
label, or stay unlabeled.
Corrections in data/corrections are written over either. metrics/annotations.json counts annotators' shapes.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.drawn_prompts import write_drawn_prompts
from sesam.artifacts.image_io import Palette, write_label
from sesam.artifacts.invariants import check_complete, check_labels
from sesam.artifacts.manifest import ImageRecord, Manifest, load_fine_label
from sesam.artifacts.supervision import save_supervision
from sesam.datasets.annotation_importer import import_all, import_annotations, warn_unread_files
from sesam.datasets.annotation_kinds import may_be_unannotated
from sesam.datasets.annotations.registry import is_annotated
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.params import FINE_TRAIN_LABELS, KINDS, Kind, Params, WeakLabelParams, load_params
from sesam.paths import CORRECTIONS, METRICS, WEAK_LABELS
from sesam.simulation import mix_kinds, simulate_boxes, simulate_weak_label


def simulate(
    record: ImageRecord, folder: Path, kinds: Mapping[str, Kind], config: WeakLabelParams, palette: Palette
) -> None:
    fine, kind = load_fine_label("train", record, len(palette)), kinds[record.id]
    label = simulate_weak_label(fine, config, kind)
    check_labels(label, record, len(palette))
    write_label(folder / f"{record.id}.png", label, palette)
    write_drawn_prompts(folder, record, simulate_boxes(fine, config, kind))


def simulate_all(manifest: Manifest, folder: Path, params: Params) -> dict[str, Kind]:
    """Write a weak label of each training image from its fine label; the images' kinds."""
    config = params.weak_labels
    unlabeled = [record for record in manifest.train if not record.has_fine_label]
    if refused := [record.id for record in unlabeled if not may_be_unannotated(record, config, {})]:
        raise SesamError(
            f"{len(refused)} training images have no fine labels to simulate weak labels from (example: {refused[0]}). "
            "Add them, use the images as unlabeled (weak_labels.unannotated: use), leave them out (dataset.exclude), "
            "or set weak_labels.path to annotators' labels (Cityscapes: its gtCoarse)."
        )
    kinds = mix_kinds([record.id for record in manifest.train if record.has_fine_label], config)
    kinds |= {record.id: "none" for record in unlabeled}
    work = partial(simulate, folder=folder, kinds=kinds, config=config, palette=manifest.palette)
    map_images(work, manifest.train, params.runtime, "weak_labels")
    return kinds


def main() -> None:
    params, manifest, shapes = load_params(), Manifest.load(), Counter[str]()
    with atomic_directory(WEAK_LABELS) as folder:
        if params.weak_labels.path == FINE_TRAIN_LABELS:
            kinds = simulate_all(manifest, folder, params)
        else:
            kinds = import_all(manifest, folder, params, shapes)
        warn_unread_files(CORRECTIONS, manifest)
        if is_annotated(CORRECTIONS):
            corrected = import_annotations(manifest, CORRECTIONS, folder, params, shapes)
            kinds |= {image_id: kind for image_id, kind in corrected.items() if kinds[image_id] == "none"}
        check_complete(folder, manifest.train)
        save_supervision(kinds)
        write_json(METRICS / "annotations.json", dict(sorted(shapes.items())))
    images = Counter(kinds.values())
    print("weak_labels: images by annotation: " + ", ".join(f"{images[kind]} {kind}" for kind in KINDS if images[kind]))


if __name__ == "__main__":
    run_main(main)
