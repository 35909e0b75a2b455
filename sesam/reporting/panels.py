"""The steps of the method side by side, one page an image, in the data set's colors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

from sesam.artifacts.manifest import Dataset, ImageRecord, load_fine_label, load_image, load_label
from sesam.artifacts.sources import NONE, SOURCE_NAMES, SOURCE_PALETTE
from sesam.labels import IGNORE_INDEX, confident_labels
from sesam.paths import METRICS
from sesam.reporting.gallery import Layer, gray_url, label_url, photo_url
from sesam.reporting.pages import Tile, class_legend, colorize, compose_page, fade, overlay_masks
from sesam.reporting.trace import ImageTrace


def val_panel(image: np.ndarray, fine: np.ndarray, predicted: Mapping[str, np.ndarray], data: Dataset) -> Image.Image:
    """Image, fine label, and the prediction of each network by name, in a row.

    image: (H, W, 3) uint8 RGB; the others (H, W) uint8.
    """
    row = [Tile("image", image), Tile("fine label", colorize(fine, data.palette))]
    row += [Tile(name, colorize(labels, data.palette)) for name, labels in predicted.items()]
    return compose_page([row], [class_legend([fine, *predicted.values()], data.classes, data.palette)])


def train_panel(found: ImageTrace, name: str, student: np.ndarray, threshold: float, data: Dataset) -> Image.Image:
    """Image, fine label and weak label; below, what the round `name` made of them.

    student: its prediction, (H, W) uint8. threshold: γ, below which the teacher is shown pale.
    """
    image, palette = found.image, data.palette
    maps = [found.fine, found.weak, found.merged, student]
    if found.predicted is None:
        teacher = Tile("no teacher", np.full_like(image, 255))
    else:
        unsure = confident_labels(found.predicted, found.confidence, threshold) == IGNORE_INDEX
        teacher = Tile("teacher, pale where unsure", fade(colorize(found.predicted, palette), unsure))
        maps.append(found.predicted)
    rows = [
        [
            Tile("image", image),
            Tile("fine label", colorize(found.fine, palette)),
            Tile("weak label", colorize(found.weak, palette)),
        ],
        [
            teacher,
            Tile(f"{name}: SAM's masks", overlay_masks(image, found.selected, palette)),
            Tile(f"{name}: merged label", colorize(found.merged, palette)),
            Tile(f"{name}: label source", colorize(found.sources, SOURCE_PALETTE)),
            Tile(f"{name}: student", colorize(student, palette)),
        ],
    ]
    sources = dict(zip(SOURCE_NAMES, SOURCE_PALETTE, strict=True))
    return compose_page(rows, [class_legend(maps, data.classes, palette), sources])


def layers(found: ImageTrace, student: np.ndarray, confidence: np.ndarray, data: Dataset, sam: bool) -> list[Layer]:
    """What a round made of a training image. student, confidence: (H, W) uint8, its student's. sam: its masks count."""

    def classes(name: str, labels: np.ndarray, sure: np.ndarray | None = None) -> Layer:
        picture = label_url(labels, data.palette, IGNORE_INDEX)
        return Layer(name, "classes", picture, None if sure is None else gray_url(sure))

    several = [Layer("image", "image", photo_url(found.image))]
    if found.item.fine:
        several.append(classes("fine", found.fine))
    several.append(classes("weak", found.weak))
    if found.predicted is not None:
        several.append(classes("teacher", found.predicted, found.confidence))
        several.append(Layer("teacher's confidence", "confidence", gray_url(found.confidence)))
    if sam:
        several.append(
            Layer("SAM's masks", "classes", photo_url(overlay_masks(found.image, found.selected, data.palette)))
        )
    several += [
        classes("merged", found.merged),
        Layer("source", "sources", label_url(found.sources, SOURCE_PALETTE, NONE)),
        classes("student", student, confidence),
        Layer("student's confidence", "confidence", gray_url(confidence)),
    ]
    return several


def val_page(name: str, item: ImageRecord, data: Dataset) -> Image.Image:
    networks = {"network of the weak labels": "teacher", f"student {name}": name}
    kept, classes = METRICS / "predictions", len(data.classes)
    predicted = {title: load_label(kept / network / "val", item, classes) for title, network in networks.items()}
    return val_panel(load_image(item), load_fine_label("val", item, classes), predicted, data)
