"""Step 5 of the method: merge selected masks, weak labels and confident predictions into pseudo-labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.dataset import Dataset, Item, item_label, item_predictions
from stages.common.errors import run_stage
from stages.common.files import read_json, whole_folder, write_text
from stages.common.labels import UNLABELLED, confident_labels, write_label
from stages.common.parallel import per_image
from stages.common.params import Params, round_of_command_line
from stages.common.regions import Order, decode_mask, painting_order
from stages.common.sources import CONFIDENT, NONE, SAM, SOURCE_NAMES, SOURCE_PALETTE, WEAK


def merge(
    weak: np.ndarray, filling: np.ndarray, selected: list[dict[str, Any]], order: Order
) -> tuple[np.ndarray, np.ndarray]:
    """Pseudo-labels and their sources, both (H, W) uint8.

    weak: (H, W) uint8 class ids, 255 = unlabelled. filling: the same of the teacher's confident predictions.
    selected: the components as select_masks wrote them. Kept masks are painted in `painting_order`; then
    weak labels are restored, and pixels that are still empty take `filling`.
    """
    labels, sources = np.full_like(weak, UNLABELLED), np.full_like(weak, NONE)
    kept = [component for component in selected if component["candidate"] is not None]
    for component in painting_order(kept, weak.shape, order):
        mask = decode_mask(component["rle"], weak.shape)
        labels[mask], sources[mask] = component["class"], SAM
    labelled = weak != UNLABELLED
    labels[labelled], sources[labelled] = weak[labelled], WEAK
    empty = (labels == UNLABELLED) & (filling != UNLABELLED)
    labels[empty], sources[empty] = filling[empty], CONFIDENT
    return labels, sources


def process(item: Item, folder: Path, name: str, params: Params, palette: tuple) -> np.ndarray:
    weak = item_label("data/weak", item)
    predicted, confidence = item_predictions(name, item)
    filling = confident_labels(predicted, confidence, params.augment.confidence)
    if not params.rounds[name].labels:
        filling[:] = UNLABELLED
    selected = (
        read_json(Path(f"data/rounds/{name}/selected/{item.id}.json"))["components"] if params.merging.sam else []
    )
    labels, sources = merge(weak, filling, selected, params.merging.order)
    write_label(folder / "labels" / f"{item.id}.png", labels, palette)
    write_label(folder / "sources" / f"{item.id}.png", sources, SOURCE_PALETTE)
    return np.bincount(sources.ravel(), minlength=len(SOURCE_NAMES))


def card(dataset: Dataset, name: str, params: Params, pixels: np.ndarray) -> str:
    """The data set card: what the PNGs hold and how they were made. pixels: count of each source."""
    shares = [
        f"| {k} | {source} | {share:.1%} |"
        for k, (source, share) in enumerate(zip(SOURCE_NAMES, pixels / pixels.sum(), strict=True))
    ]
    classes = [
        f"| {k} | {c} | {colour} |" for k, (c, colour) in enumerate(zip(dataset.classes, dataset.palette, strict=True))
    ]
    used = params.model_dump(
        include={"seed", "weak", "augment", "components", "sampling", "sam", "selection", "merging"}
    )
    lines = [
        f"# Pseudo-labels of {dataset.name}, round {name}",
        "",
        f"{len(dataset.train)} training images. `labels/ID.png`: class ids, 255 = unlabelled. "
        "`sources/ID.png`: where each pixel's label comes from. 8-bit palette PNGs, made by SeSAM (arXiv 2604.11170).",
        "",
        "| source | meaning | share of pixels |",
        "| --- | --- | --- |",
        *shares,
        "",
        "| id | class | colour |",
        "| --- | --- | --- |",
        *classes,
        "",
        "| parameter | value |",
        "| --- | --- |",
        *(f"| {group} | `{value}` |" for group, value in used.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset = Dataset.load()
    with whole_folder(Path(f"data/pseudo_labels/{name}")) as folder:
        work = partial(process, folder=folder, name=name, params=params, palette=dataset.palette)
        pixels = np.sum(per_image(work, dataset.train, params.runtime.workers, f"merge_labels {name}"), axis=0)
        write_text(folder / "README.md", card(dataset, name, params, pixels))


if __name__ == "__main__":
    run_stage(main)
