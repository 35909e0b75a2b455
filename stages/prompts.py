"""Steps 0 to 2 of the method: augment the weak labels, separate instances, sample prompts."""

from collections.abc import Sequence
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np

from sesam.artifacts.atomic_io import atomic_directory
from sesam.artifacts.component_records import write_prompts
from sesam.artifacts.drawn_prompts import read_drawn_prompts
from sesam.artifacts.manifest import ImageRecord, Manifest, load_label
from sesam.artifacts.supervision import with_kinds
from sesam.artifacts.thresholds import count_predictions, load_confident, save_thresholds
from sesam.errors import run_main, warn
from sesam.execution.parallel import map_images
from sesam.params import Kind, Params, parse_round
from sesam.paths import WEAK_LABELS, round_dir
from sesam.prompting import image_prompts


def prompt_image(
    record_and_kind: tuple[ImageRecord, Kind], folder: Path, params: Params, round_name: str, classes: Sequence[str]
) -> tuple[int, int]:
    """How many components the image has, and how many background points no component has in its prompt."""
    (record, kind), num_classes = record_and_kind, len(classes)
    weak = load_label(WEAK_LABELS, record, num_classes)
    confident, confidence = load_confident(round_name, record, kind, classes, params.teacher)
    drawn = read_drawn_prompts(WEAK_LABELS, record, num_classes)
    components = []
    if kind != "fine":
        components = image_prompts(weak, confident, confidence, params, (round_name, record.id), drawn, classes)
    write_prompts(folder / f"{record.id}.json", record, params.sampling.prompt_type, components)
    used = sum(len(component.background_points or ()) for component in components)
    return len(components), (len(drawn.background_points) - used) * params.sam.enabled


def main() -> None:
    round_name, params = parse_round(__doc__)
    manifest = Manifest.load()
    images, title = with_kinds(manifest.train), f"prompts {round_name}"
    counts = np.zeros((len(manifest.classes), 256), int)
    if unannotated := [record for record, kind in images if kind == "none"]:
        count = partial(count_predictions, round_name=round_name, num_classes=len(manifest.classes))
        map_images(count, unannotated, params.runtime, f"{title}: thresholds", collect=counts.__iadd__)
    save_thresholds(round_name, manifest.classes, counts, params.teacher)
    with atomic_directory(round_dir(round_name, "prompts"), packed=True) as folder:
        work = partial(prompt_image, folder=folder, params=params, round_name=round_name, classes=manifest.classes)
        made = map_images(work, images, params.runtime, title)
    num_components, unused = zip(*made, strict=True)
    print(f"{title}: {sum(num_components)} components")
    which = "beside concepts" if params.sampling.prompt_type == "concept" else "of classes without a component"
    text = f"background points {which}, which prompt nothing: {sum(unused)}, in images"
    warn(text, compress([record.id for record in manifest.train], unused))


if __name__ == "__main__":
    run_main(main)
