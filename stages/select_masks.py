"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import whole_folder, write_json
from sesam.artifacts.component_records import read_candidates, read_prompts
from sesam.artifacts.manifest import Dataset, Item, item_label
from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.execution.parallel import per_image
from sesam.params import Selection
from sesam.paths import WEAK_LABELS, of_round
from sesam.selection import select, weak_masks


def process(item: Item, folder: Path, name: str, selection: Selection, classes: int) -> tuple[int, int]:
    components = read_prompts(of_round(name, "prompts") / f"{item.id}.json", item, classes)["components"]
    candidates = read_candidates(of_round(name, "masks") / f"{item.id}.json", item, components)
    weak = weak_masks(item_label(WEAK_LABELS, item, classes))
    chosen = [select(component, candidates[component["number"]], weak, selection) for component in components]
    size = {"height": item.height, "width": item.width}
    write_json(folder / f"{item.id}.json", {"id": item.id, **size, "components": chosen})
    return sum(component["candidate"] is not None for component in chosen), len(chosen)


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset = Dataset.load()
    with whole_folder(of_round(name, "selected"), packed=True) as folder:
        work = partial(process, folder=folder, name=name, selection=params.selection, classes=len(dataset.classes))
        counts = per_image(work, dataset.train, params.runtime, f"select_masks {name}")
    kept, of = (sum(column) for column in zip(*counts, strict=True))
    print(f"select_masks {name}: SAM's mask kept for {kept} of {of} components")


if __name__ == "__main__":
    run_stage(main)
