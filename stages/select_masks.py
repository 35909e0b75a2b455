"""Step 4 of the method: of each component's candidates, keep the mask that fits the component."""

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.component_records import read_candidates, read_prompts, write_selected
from sesam.artifacts.manifest import ImageRecord, Manifest, load_label
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.params import Params, parse_round
from sesam.paths import WEAK_LABELS, round_dir
from sesam.selection import select_candidate, weak_masks_by_class


def select_image(
    record: ImageRecord, folder: Path, params: Params, round_name: str, num_classes: int
) -> tuple[int, int]:
    components = read_prompts(round_dir(round_name, "prompts") / f"{record.id}.json", record, num_classes)
    candidates = read_candidates(round_dir(round_name, "masks") / f"{record.id}.json", record, components)
    weak_masks = weak_masks_by_class(load_label(WEAK_LABELS, record, num_classes))
    selected = [select_candidate(c, candidates[c.number], weak_masks, params.selection)[0] for c in components]
    write_selected(folder / f"{record.id}.json", record, selected)
    return sum(component.kept for component in selected), len(selected)


def main() -> None:
    round_name, params = parse_round(__doc__)
    manifest = Manifest.load()
    with atomic_directory(round_dir(round_name, "selected"), packed=True) as folder:
        work = partial(
            select_image, folder=folder, params=params, round_name=round_name, num_classes=len(manifest.classes)
        )
        counts = map_images(work, manifest.train, params.runtime, f"select_masks {round_name}")
    kept, total = (sum(column) for column in zip(*counts, strict=True))
    print(f"select_masks {round_name}: SAM's mask kept for {kept} of {total} components")


if __name__ == "__main__":
    run_main(main)
