"""WeakLabelParams labels: coarse polygons, scribbles or points, drawn from fine labels or by annotators.

`weak_labels.kind: fine` gives the fine labels themselves, for comparison with full supervision.

What is drawn here, one per region, never holds a pixel of another class, and every region of at least
`weak_labels.min_area` pixels gets one. With another `weak_labels.source` annotators' labels are brought to class ids,
and fine labels are not read. What people corrected, in data/corrections, lies on top of either.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.invariants import check_complete, check_labels
from sesam.artifacts.label_png import Palette, write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_label
from sesam.datasets.annotations.reading import is_annotated
from sesam.datasets.weak_annotations import import_annotations
from sesam.errors import SesamError, run_main
from sesam.execution.parallel import map_images
from sesam.params import SIMULATED, WeakLabelParams, load_params
from sesam.paths import WEAK_LABELS
from sesam.weak import weak_label

FINE = Path(SIMULATED)
CORRECTIONS = Path("data/corrections")  # what people corrected of merged labels; see sesam/cli/export.py


def draw(item: ImageRecord, folder: Path, config: WeakLabelParams, palette: Palette) -> None:
    weak = weak_label(load_label(FINE, item, len(palette)), config)
    check_labels(weak, item, len(palette))
    write_label(folder / f"{item.id}.png", weak, palette)


def main() -> None:
    params, dataset = load_params(), Dataset.load()
    config = params.weak_labels
    with atomic_directory(WEAK_LABELS) as folder:
        if Path(config.source) != FINE:
            import_annotations(dataset, Path(config.source), folder, config, params.runtime)
        elif without := [item.id for item in dataset.train if not item.fine]:
            raise SesamError(
                f"{len(without)} training images have no fine labels to draw weak ones from, first {without[0]}. "
                "Set weak_labels.source to where their weak labels lie (Cityscapes: its gtCoarse)."
            )
        else:
            work = partial(draw, folder=folder, config=config, palette=dataset.palette)
            map_images(work, dataset.train, params.runtime, "weak_labels")
        if is_annotated(CORRECTIONS):
            import_annotations(dataset, CORRECTIONS, folder, config, params.runtime, onto=True)
        check_complete(folder, dataset.train)


if __name__ == "__main__":
    run_main(main)
