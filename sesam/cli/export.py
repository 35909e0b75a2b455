"""Export pseudo-labels to an annotation tool, to be corrected there.

    sesam export r1 --format cvat --out to_do
    sesam export r1 --format label-studio --out to_do --top 50

The corrected file goes to data/corrections, also with what was not changed: the exported labels are kept in
data/corrections/.exported, and a pixel that comes back the same is not a correction. Each connected region of a class
is one mask. Where the tool has room for them, a mask has the source of most of its pixels, and the confidence of the
round's teacher.
"""

import argparse
from pathlib import Path, PurePosixPath

import numpy as np

from sesam.artifacts.atomic_io import claim_folder
from sesam.artifacts.manifest import ImageRecord, Manifest, load_predictions
from sesam.artifacts.ranking import top_ranked
from sesam.artifacts.sources import FINE, SOURCE_TITLES, WEAK, load_pseudo_label
from sesam.datasets.annotations.common import ImageRegions, LabeledRegion
from sesam.datasets.annotations.registry import EXPORTERS
from sesam.datasets.exported_labels import save_exported
from sesam.errors import SesamError
from sesam.geometry.regions import connected_regions
from sesam.labels import IGNORE_INDEX
from sesam.params import NO_TEACHER, load_params

REPOSITORY_FILES = ("params.yaml",)


def labeled_regions(
    labels: np.ndarray, sources: np.ndarray, confidence: np.ndarray | None, classes: tuple[str, ...]
) -> list[LabeledRegion]:
    """The regions of a label map with its sources and the teacher's confidence, None without one; all (H, W) uint8."""
    regions = []
    for k, region in connected_regions(labels, 8, 1):
        source = np.bincount(sources[region.slices][region.mask]).argmax()
        attributes: dict[str, str | float] = {"source": SOURCE_TITLES[source]}
        if confidence is not None:
            attributes["confidence"] = round(float(confidence[region.slices][region.mask].mean()) / 255, 3)
        regions.append(LabeledRegion(classes[k], region, attributes))
    return regions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("round", metavar="ROUND", help="a key of `rounds` in params.yaml")
    add("--format", choices=EXPORTERS, required=True, help="the annotation tool's format")
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder, or one of an earlier export")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--images", nargs="+", metavar="ID", help="ids of the images to export (default: all)")
    selection.add_argument("--top", type=int, metavar="N", help="export the first N images of the round's ranking.csv")
    add("--prefix", default="", metavar="TEXT", help="text before image names, as /data/local-files/?d= (Label Studio)")


def run(options: argparse.Namespace) -> None:
    params, manifest, round_name = load_params(), Manifest.load(), options.round
    params.check_round(round_name)
    records = {record.id: record for record in manifest.train}
    ids = list(dict.fromkeys(options.images or records))
    if unknown := [image_id for image_id in ids if image_id not in records]:
        raise SesamError(f"{', '.join(unknown[:5])} is not a training image id (example: {next(iter(records))}).")
    if options.top is not None and options.top < 1:
        raise SesamError(f"--top is {options.top}; expected 1 or more.")
    chosen = [records[k] for k in ids] if options.top is None else top_ranked(round_name, manifest, options.top)
    has_teacher, num_classes = params.rounds[round_name].teacher != NO_TEACHER, len(manifest.classes)

    def load_regions(record: ImageRecord) -> ImageRegions:
        labels, sources = load_pseudo_label(round_name, record, num_classes)
        confidence = load_predictions(round_name, record, num_classes)[1] if has_teacher else None
        name = options.prefix + PurePosixPath(record.id).with_name(Path(record.image).name).as_posix()
        regions = labeled_regions(labels, sources, confidence, manifest.classes)
        made = np.where(np.isin(sources, (WEAK, FINE)), IGNORE_INDEX, labels).astype(np.uint8)
        save_exported(round_name, record, made, manifest.palette)
        return ImageRegions(record, name, regions)

    claim_folder(options.out, "sesam export")
    EXPORTERS[options.format](map(load_regions, chosen), manifest.classes, options.out)  # one in memory at a time
    print(f"export: {len(chosen)} images in {options.out}")
