"""Steps 0 to 2 of the method: augment the weak labels, separate instances, sample prompts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import whole_folder, write_json
from sesam.artifacts.manifest import Dataset, Item, item_label, item_predictions
from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.execution.parallel import per_image
from sesam.params import Params
from sesam.paths import WEAK_LABELS, of_round
from sesam.prompting import image_prompts


def process(item: Item, folder: Path, params: Params, name: str, classes: int) -> int:
    weak = item_label(WEAK_LABELS, item, classes)
    predicted, confidence = item_predictions(name, item, classes)
    components = image_prompts(weak, predicted, confidence, params, (name, item.id))
    size = {"height": item.height, "width": item.width}
    document = {"id": item.id, **size, "prompt": params.sampling.prompt, "components": components}
    write_json(folder / f"{item.id}.json", document)
    return len(components)


def main() -> None:
    name, params = round_of_command_line(__doc__)
    dataset = Dataset.load()
    with whole_folder(of_round(name, "prompts"), packed=True) as folder:
        work = partial(process, folder=folder, params=params, name=name, classes=len(dataset.classes))
        counts = per_image(work, dataset.train, params.runtime, f"prompts {name}")
    print(f"prompts {name}: {sum(counts)} components")


if __name__ == "__main__":
    run_stage(main)
