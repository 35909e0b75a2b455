"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.component_records import read_candidates, read_prompts
from sesam.artifacts.manifest import Dataset, ImageRecord, load_label
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.params import SelectionParams, parse_round
from sesam.paths import WEAK_LABELS, round_dir
from sesam.selection import select_candidate, weak_rles


def process(item: ImageRecord, folder: Path, name: str, selection: SelectionParams, classes: int) -> tuple[int, int]:
    components = read_prompts(round_dir(name, "prompts") / f"{item.id}.json", item, classes)["components"]
    candidates = read_candidates(round_dir(name, "masks") / f"{item.id}.json", item, components)
    weak = weak_rles(load_label(WEAK_LABELS, item, classes))
    chosen = [select_candidate(component, candidates[component["number"]], weak, selection) for component in components]
    size = {"height": item.height, "width": item.width}
    write_json(folder / f"{item.id}.json", {"id": item.id, **size, "components": chosen})
    return sum(component["candidate"] is not None for component in chosen), len(chosen)


def main() -> None:
    name, params = parse_round(__doc__)
    dataset = Dataset.load()
    with atomic_directory(round_dir(name, "selected"), packed=True) as folder:
        work = partial(process, folder=folder, name=name, selection=params.selection, classes=len(dataset.classes))
        counts = map_images(work, dataset.train, params.runtime, f"select_masks {name}")
    kept, of = (sum(column) for column in zip(*counts, strict=True))
    print(f"select_masks {name}: SAM's mask kept for {kept} of {of} components")


if __name__ == "__main__":
    run_main(main)
