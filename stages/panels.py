"""What a round made of some images: metrics/panels/ROUND/SPLIT/ID.png, a page an image, and metrics/gallery/ROUND.json.

python -m stages.panels ROUND

Shown are the first images to validate on, and the training images whose labels most need a look (ranking.csv). The
gallery holds the training images as layers, for the report.
"""

from __future__ import annotations

from sesam.artifacts.atomic_io import whole, whole_folder
from sesam.artifacts.manifest import Dataset, item_label
from sesam.artifacts.ranking import worst
from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.execution.parallel import progress
from sesam.paths import GALLERY, METRICS
from sesam.reporting.gallery import Shown, write_gallery
from sesam.reporting.panels import layers, train_panel, val_page
from sesam.reporting.trace import list_components, load


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    data, few = Dataset.load(), params.evaluation.panels
    training, validating = worst(name, data, few), data.val[:few]
    gallery = []
    with (
        whole_folder(METRICS / "panels" / name) as folder,
        progress(len(training) + len(validating), f"panels {name}") as bar,
    ):
        for item in training:
            found, kept = load(item, name, data, params), METRICS / "predictions" / name
            student = item_label(kept / "train", item, len(data.classes))
            confidence = item_label(kept / "confidence", item)
            with whole(folder / "train" / f"{item.id}.png") as unfinished:
                train_panel(found, name, student, params.augment.confidence, data).save(unfinished)
            sam = params.merging.sam
            components = list_components(found, params.selection) if sam else []
            gallery.append(Shown(item.id, layers(found, student, confidence, data, sam), components))
            del found  # its masks, before those of the next are read
            bar.update()
        for item in validating:
            with whole(folder / "val" / f"{item.id}.png") as unfinished:
                val_page(name, item, data).save(unfinished)
            bar.update()
    write_gallery(GALLERY / f"{name}.json", gallery)


if __name__ == "__main__":
    run_stage(main)
