"""Steps 0 to 2 of the method: augment the weak labels, separate instances, sample prompts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sesam.artifacts.atomic_io import atomic_directory, write_json
from sesam.artifacts.manifest import Dataset, ImageRecord, load_label, load_predictions
from sesam.errors import run_main
from sesam.execution.parallel import map_images
from sesam.params import Params, parse_round
from sesam.paths import WEAK_LABELS, round_dir
from sesam.prompting import image_prompts


def process(item: ImageRecord, folder: Path, params: Params, name: str, classes: int) -> int:
    weak = load_label(WEAK_LABELS, item, classes)
    predicted, confidence = load_predictions(name, item, classes)
    components = image_prompts(weak, predicted, confidence, params, (name, item.id))
    size = {"height": item.height, "width": item.width}
    document = {"id": item.id, **size, "prompt": params.sampling.prompt_type, "components": components}
    write_json(folder / f"{item.id}.json", document)
    return len(components)


def main() -> None:
    name, params = parse_round(__doc__)
    dataset = Dataset.load()
    with atomic_directory(round_dir(name, "prompts"), packed=True) as folder:
        work = partial(process, folder=folder, params=params, name=name, classes=len(dataset.classes))
        counts = map_images(work, dataset.train, params.runtime, f"prompts {name}")
    print(f"prompts {name}: {sum(counts)} components")


if __name__ == "__main__":
    run_main(main)
