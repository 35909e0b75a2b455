"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from stages.common.dataset import Dataset, Item, item_label
from stages.common.errors import run_stage
from stages.common.files import read_json, whole_folder, write_json
from stages.common.labels import UNLABELLED
from stages.common.parallel import per_image
from stages.common.params import Selection, round_of_command_line
from stages.common.regions import coco_mask, decode_mask


def coverage(mask: dict, component: dict) -> tuple[float, float]:
    """(|M∩C|/|M|, |M∩C|/|C|) of two COCO masks; 0 for an empty one."""
    shared = float(coco.area(coco.merge([mask, component], intersect=True)))
    return tuple(shared / max(float(coco.area(part)), 1.0) for part in (mask, component))


def conflict(mask: np.ndarray, k: int, weak: np.ndarray) -> float:
    """Share of a mask's weakly labelled pixels that are of another class than k; 0 without any."""
    inside = weak[mask]
    inside = inside[inside != UNLABELLED]
    return float((inside != k).mean()) if len(inside) else 0.0


def select(
    component: dict[str, Any], offered: list[dict[str, Any]], weak: np.ndarray, how: Selection
) -> dict[str, Any]:
    """The kept candidate of a component, or the component itself (`candidate` is null).

    A candidate M stays if |M∩C|/|M| ≥ τ1 and |M∩C|/|C| ≥ τ2 and, with the guard
    on, its conflict is at most `max_conflict`; of those, the one with the highest
    predicted IoU, the first if several have it. weak: (H, W) uint8.
    """
    own = coco_mask(component["rle"], weak.shape)
    chosen = {"class": component["class"], "candidate": None, "iou": None, "rle": component["rle"]}
    for number, candidate in enumerate(offered):
        of_mask, of_component = coverage(coco_mask(candidate["rle"], weak.shape), own)
        fits = of_mask >= how.tau_mask and of_component >= how.tau_weak and of_mask > 0
        if not fits or (chosen["iou"] is not None and candidate["iou"] <= chosen["iou"]):
            continue
        if how.max_conflict is not None:
            mask = decode_mask(candidate["rle"], weak.shape)
            if conflict(mask, component["class"], weak) > how.max_conflict:
                continue
        chosen |= {"candidate": number, "iou": candidate["iou"], "rle": candidate["rle"]}
    return chosen


def process(item: Item, folder: Path, name: str, how: Selection) -> tuple[int, int]:
    prompts = read_json(Path(f"data/rounds/{name}/prompts/{item.id}.json"))
    masks = read_json(Path(f"data/rounds/{name}/masks/{item.id}.json"))
    weak = item_label("data/weak", item)
    pairs = zip(prompts["components"], masks["candidates"], strict=True)
    chosen = [select(component, offered, weak, how) for component, offered in pairs]
    size = {"height": item.height, "width": item.width}
    write_json(folder / f"{item.id}.json", {"id": item.id, **size, "components": chosen})
    return sum(component["candidate"] is not None for component in chosen), len(chosen)


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset = Dataset.load()
    with whole_folder(Path(f"data/rounds/{name}/selected")) as folder:
        work = partial(process, folder=folder, name=name, how=params.selection)
        counts = per_image(work, dataset.train, params.runtime.workers, f"select_masks {name}")
    kept, of = (sum(column) for column in zip(*counts, strict=True))
    print(f"select_masks {name}: SAM's mask kept for {kept} of {of} components")


if __name__ == "__main__":
    run_stage(main)
