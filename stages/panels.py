"""What a round made of some images: metrics/panels/ROUND/SPLIT/ID.png, a page an image, and metrics/gallery/ROUND.json.

python -m stages.panels ROUND

Shown are the first images to validate on, and the training images whose labels most need a look (ranking.csv). The
gallery holds the training images as layers, for the report.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from sesam.command_line import round_of_command_line
from sesam.artifacts.manifest import Dataset, Item, item_fine, item_image, item_label
from sesam.errors import run_stage
from sesam.artifacts.atomic_io import whole, whole_folder
from sesam.paths import GALLERY, METRICS
from sesam.labels import UNLABELLED
from sesam.execution.parallel import progress
from sesam.artifacts.ranking import worst
from sesam.artifacts.sources import NONE, SOURCE_PALETTE
from sesam.cli.explain import Explained, list_components, load
from sesam.reporting.gallery import Layer, Shown, grey, label_map, photograph, write_gallery
from sesam.reporting.panels import train_panel, val_panel
from sesam.reporting.pages import with_masks


def layers(found: Explained, student: np.ndarray, confidence: np.ndarray, data: Dataset, sam: bool) -> list[Layer]:
    """What a round made of a training image. student, confidence: (H, W) uint8, its student's. sam: its masks count."""

    def classes(name: str, labels: np.ndarray, sure: np.ndarray | None = None) -> Layer:
        picture = label_map(labels, data.palette, UNLABELLED)
        return Layer(name, "classes", picture, None if sure is None else grey(sure))

    several = [Layer("image", "image", photograph(found.image))]
    if found.item.fine:
        several.append(classes("fine", found.fine))
    several.append(classes("weak", found.weak))
    if found.predicted is not None:
        several.append(classes("teacher", found.predicted, found.confidence))
        several.append(Layer("teacher's confidence", "confidence", grey(found.confidence)))
    if sam:
        several.append(
            Layer("SAM's masks", "classes", photograph(with_masks(found.image, found.selected, data.palette)))
        )
    several += [
        classes("merged", found.merged),
        Layer("source", "sources", label_map(found.sources, SOURCE_PALETTE, NONE)),
        classes("student", student, confidence),
        Layer("student's confidence", "confidence", grey(confidence)),
    ]
    return several


def val_page(name: str, item: Item, data: Dataset) -> Image.Image:
    networks = {"network of the weak labels": "teacher", f"student {name}": name}
    kept, classes = METRICS / "predictions", len(data.classes)
    predicted = {title: item_label(kept / network / "val", item, classes) for title, network in networks.items()}
    return val_panel(item_image(item), item_fine("val", item, classes), predicted, data)


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
