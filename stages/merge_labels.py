"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from functools import partial
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.component_records import read_prompts, read_selected
from sesam.artifacts.image_io import write_label
from sesam.artifacts.invariants import check_complete, check_pseudo_label
from sesam.artifacts.manifest import ImageRecord, Manifest, load_image, load_label
from sesam.artifacts.sources import FINE, SOURCE_PALETTE, WEAK
from sesam.artifacts.supervision import with_kinds
from sesam.artifacts.thresholds import load_confident
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.labels import IGNORE_INDEX
from sesam.merging import merge_labels
from sesam.params import Kind, Params, parse_round
from sesam.paths import WEAK_LABELS, pseudo_label_dir, round_dir


def merge_image(
    record_and_kind: tuple[ImageRecord, Kind],
    labels: Path,
    sources: Path,
    round_name: str,
    params: Params,
    manifest: Manifest,
) -> bool:
    """Write an image's pseudo-label to the folder `labels`, and where each pixel comes from to `sources`.

    Returns whether a pixel has a label.
    """
    record, kind = record_and_kind
    num_classes, is_fine = len(manifest.classes), kind == "fine"
    weak = load_label(WEAK_LABELS, record, num_classes)
    confident = np.full_like(weak, IGNORE_INDEX)
    if params.rounds[round_name].fill_confident and not is_fine:  # what fine masks leave out has no class
        confident, _ = load_confident(round_name, record, kind, manifest.classes, params.teacher)
    components = read_prompts(round_dir(round_name, "prompts") / f"{record.id}.json", record, num_classes)
    path = round_dir(round_name, "selected") / f"{record.id}.json"
    selected = read_selected(path, record, num_classes, components)
    weak_source = FINE if is_fine else WEAK
    pseudo_label, source_map = merge_labels(load_image(record), weak, confident, components, selected, weak_source)
    check_pseudo_label(pseudo_label, source_map, weak, confident, record, num_classes)
    write_label(labels / f"{record.id}.png", pseudo_label, manifest.palette)
    write_label(sources / f"{record.id}.png", source_map, SOURCE_PALETTE)
    return bool((pseudo_label != IGNORE_INDEX).any())


def main() -> None:
    round_name, params = parse_round(__doc__)
    manifest, folder = Manifest.load(), pseudo_label_dir(round_name)
    with atomic_directory(folder / "labels") as labels, atomic_directory(folder / "sources") as sources:
        work = partial(
            merge_image, labels=labels, sources=sources, round_name=round_name, params=params, manifest=manifest
        )
        labeled = map_images(work, with_kinds(manifest.train), params.runtime, f"merge_labels {round_name}")
        if not any(labeled):
            raise SesamError(
                f"Round {round_name} labels no pixel of any image, so a student could learn nothing: there is no "
                "annotation, and no mask of SAM's was kept. Annotate some images, or prompt SAM 3 with concepts "
                "(sampling.prompt_type)."
            )
        check_complete(labels, manifest.train)
        check_complete(sources, manifest.train)


if __name__ == "__main__":
    run_main(main)
