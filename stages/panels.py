"""What a round made of some images: metrics/panels/ROUND/SPLIT/ID.png, a page an image, and metrics/gallery/ROUND.json.

python -m stages.panels ROUND

Shown are the first images to validate on, and the training images whose labels most need a look (ranking.csv). The
gallery holds the training images as layers, for the report.
"""

from __future__ import annotations

from sesam.artifacts.atomic_io import atomic_directory, atomic_path
from sesam.artifacts.manifest import Dataset, load_label
from sesam.artifacts.ranking import top_ranked
from sesam.errors import run_main
from sesam.execution.parallel import progress_bar
from sesam.params import parse_round
from sesam.paths import GALLERY, METRICS
from sesam.reporting.gallery import GalleryImage, write_gallery
from sesam.reporting.panels import layers, train_panel, val_page
from sesam.reporting.trace import list_components, load_trace


def main() -> None:
    name, params = parse_round(__doc__.splitlines()[0])
    data, few = Dataset.load(), params.report.num_images
    training, validating = top_ranked(name, data, few), data.val[:few]
    gallery = []
    with (
        atomic_directory(METRICS / "panels" / name) as folder,
        progress_bar(len(training) + len(validating), f"panels {name}") as bar,
    ):
        for item in training:
            found, kept = load_trace(item, name, data, params), METRICS / "predictions" / name
            student = load_label(kept / "train", item, len(data.classes))
            confidence = load_label(kept / "confidence", item)
            with atomic_path(folder / "train" / f"{item.id}.png") as unfinished:
                train_panel(found, name, student, params.teacher_labels.confidence_threshold, data).save(unfinished)
            sam = params.sam.enabled
            components = list_components(found, params.selection) if sam else []
            gallery.append(GalleryImage(item.id, layers(found, student, confidence, data, sam), components))
            del found  # its masks, before those of the next are read
            bar.update()
        for item in validating:
            with atomic_path(folder / "val" / f"{item.id}.png") as unfinished:
                val_page(name, item, data).save(unfinished)
            bar.update()
    write_gallery(GALLERY / f"{name}.json", gallery)


if __name__ == "__main__":
    run_main(main)
