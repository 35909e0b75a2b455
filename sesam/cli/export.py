"""Export pseudo-labels to an annotation tool, to be corrected there.

    sesam export r2 --format cvat --out to_do
    sesam export r2 --format label-studio --out to_do --top 50

Each connected piece of a class is one mask, so that what comes back untouched is what went out. Where the tool has room
for them, a mask says where most of its pixels come from, and how sure the round's teacher was of them, if it has one.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sesam.artifacts.atomic_io import atomic_path, write_json
from sesam.artifacts.manifest import Dataset, ImageRecord, load_predictions
from sesam.artifacts.ranking import top_ranked
from sesam.artifacts.sources import SOURCE_NAMES, load_pseudo_label
from sesam.errors import SesamError
from sesam.geometry.regions import Region, connected_regions
from sesam.geometry.rle import mask_to_counts
from sesam.params import NO_TEACHER, load_params


class LabeledRegion(NamedTuple):
    """A connected piece of a class. about: `source`, where most of its pixels come from, and `confidence`, if known."""

    name: str
    region: Region
    about: dict[str, str | float]


def labeled_regions(
    labels: np.ndarray, sources: np.ndarray, confidence: np.ndarray | None, classes: Sequence[str]
) -> list[LabeledRegion]:
    """The pieces of a label map with its sources and the teacher's confidence, None without one; all (H, W) uint8."""
    found = []
    for k, region in connected_regions(labels, 8, 1):
        of = np.bincount(sources[region.slices][region.mask], minlength=len(SOURCE_NAMES))
        about: dict[str, str | float] = {"source": SOURCE_NAMES[int(of.argmax())]}
        if confidence is not None:
            about["confidence"] = round(float(confidence[region.slices][region.mask].mean()) / 255, 3)
        found.append(LabeledRegion(classes[k], region, about))
    return found


class ImageRegions(NamedTuple):
    """An image with its pieces. name: what the tool calls it."""

    item: ImageRecord
    name: str
    pieces: list[LabeledRegion]

    @property
    def shape(self) -> tuple[int, int]:
        return self.item.height, self.item.width


def to_cvat(drawn: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """annotations.xml, CVAT for images 1.1; CVAT takes the image of a task that has the name's file name."""
    with atomic_path(out / "annotations.xml") as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        for number, one in enumerate(drawn):
            size = {"width": str(one.item.width), "height": str(one.item.height)}
            image = ElementTree.Element("image", {"id": str(number), "name": one.name, **size})
            for piece in one.pieces:
                height, width = piece.region.mask.shape
                window = {"left": piece.region.left, "top": piece.region.top, "width": width, "height": height}
                about = {"label": piece.name, "source": "semi-auto", "occluded": "0", "z_order": "0"}
                about |= {key: str(value) for key, value in window.items()}
                about["rle"] = ", ".join(map(str, mask_to_counts(piece.region.mask.T)))
                mask = ElementTree.SubElement(image, "mask", about)
                for name, value in piece.about.items():
                    ElementTree.SubElement(mask, "attribute", name=name).text = str(value)
            ElementTree.indent(image)
            file.write(ElementTree.tostring(image, "unicode") + "\n")
        file.write("</annotations>\n")


def to_label_studio(drawn: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """tasks.json, each with an annotation of brushes, and labels.xml, the project's labeling interface."""
    with atomic_path(out / "tasks.json") as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write("[")
        for k, one in enumerate(drawn):
            sides = {"original_width": one.item.width, "original_height": one.item.height, "image_rotation": 0}
            result = [
                {
                    "id": f"{number}",
                    "type": "brushlabels",
                    "from_name": "labels",
                    "to_name": "image",
                    **sides,
                    **({"score": piece.about["confidence"]} if "confidence" in piece.about else {}),
                    "meta": {"text": [piece.about["source"]]},
                    "value": {
                        "format": "rle",
                        "rle": encode_brush(piece.region.full_mask(one.shape)),
                        "brushlabels": [piece.name],
                    },
                }
                for number, piece in enumerate(one.pieces)
            ]
            annotation = {"result": result, "was_cancelled": False}
            task = {"data": {"image": one.name}, "annotations": [annotation]}
            file.write(",\n" * (k > 0) + json.dumps(task))
        file.write("]")
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    labels = ElementTree.SubElement(view, "BrushLabels", name="labels", toName="image")
    for name in classes:
        ElementTree.SubElement(labels, "Label", value=name)
    with atomic_path(out / "labels.xml") as unfinished:
        ElementTree.ElementTree(view).write(unfinished, encoding="utf-8")


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask (H, W) bool in the bytes of Label Studio's brush; `label_studio.decode_brush` reads them."""
    bits = [f"{4 * mask.size:032b}", f"{7:05b}", f"{15:04b}" * 4]
    for k, length in enumerate(mask_to_counts(mask.T).tolist()):
        value = f"{255 * (k % 2):08b}"
        for start in range(0, 4 * length, 1 << 16):
            bits.append(f"100{min(4 * length - start, 1 << 16) - 1:016b}{value}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def to_labelme(drawn: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """A file of the image's own name, in the folders of its id: labelme opens that, and expects the image beside it."""
    for one in drawn:
        shapes: list[dict[str, Any]] = []
        for piece in one.pieces:
            file, region = io.BytesIO(), piece.region
            Image.fromarray(region.mask.astype(np.uint8)).save(file, "PNG")
            height, width = region.mask.shape
            corners = [[region.left, region.top], [region.left + width - 1, region.top + height - 1]]
            shapes.append(
                {
                    "label": piece.name,
                    "points": corners,
                    "group_id": None,
                    "description": ", ".join(f"{key} {value}" for key, value in piece.about.items()),
                    "shape_type": "mask",
                    "flags": {},
                    "mask": base64.b64encode(file.getvalue()).decode(),
                }
            )
        sides = {"imageHeight": one.item.height, "imageWidth": one.item.width}
        about: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "imageData": None,
            "imagePath": Path(one.name).name,
            **sides,
        }
        name = PurePosixPath(one.item.id).with_name(Path(one.item.image).stem + ".json")
        write_json(out / name, about | {"shapes": shapes})


def to_coco(drawn: Iterable[ImageRegions], classes: Sequence[str], out: Path) -> None:
    """instances.json with run lengths; category ids are class ids from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(drawn, 1):
        size = {"width": one.item.width, "height": one.item.height}
        images.append({"id": number, "file_name": one.name, **size})
        for piece in one.pieces:
            height, width = piece.region.mask.shape
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": classes.index(piece.name) + 1,
                    "segmentation": {"size": list(one.shape), "counts": piece.region.rle(one.shape)},
                    "area": piece.region.area,
                    "bbox": [piece.region.left, piece.region.top, width, height],
                    "iscrowd": 0,
                    "attributes": piece.about,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    write_json(out / "instances.json", {"images": images, "annotations": annotations, "categories": categories})


EXPORTERS: dict[str, Callable[[Iterable[ImageRegions], Sequence[str], Path], None]] = {
    "cvat": to_cvat,
    "label-studio": to_label_studio,
    "labelme": to_labelme,
    "coco": to_coco,
}


REPOSITORY_FILES = ("params.yaml",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("round", metavar="ROUND", help="a key of `rounds` in params.yaml")
    parser.add_argument("--format", choices=EXPORTERS, required=True, help="the annotation tool's format")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder; files of the same name are replaced"
    )
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument("--images", nargs="+", metavar="ID", help="ids of the images to export (default: all)")
    selection.add_argument("--top", type=int, metavar="N", help="export the first N images of the round's ranking.csv")
    parser.add_argument(
        "--prefix", default="", metavar="TEXT", help="text before image names, as /data/local-files/?d= (Label Studio)"
    )


def run(options: argparse.Namespace) -> None:
    params, dataset = load_params(), Dataset.load()
    params.check_round(options.round)
    items = {item.id: item for item in dataset.train}
    chosen = options.images or list(items)
    if options.top is not None:
        chosen = [item.id for item in top_ranked(options.round, dataset, max(1, options.top))]
    if unknown := [k for k in chosen if k not in items]:
        raise SesamError(f"{', '.join(unknown[:5])}: not a training image id (example: {next(iter(items))}).")
    taught = params.rounds[options.round].teacher != NO_TEACHER

    def drawn(item: ImageRecord) -> ImageRegions:
        labels, sources = load_pseudo_label(options.round, item, len(dataset.classes))
        confidence = load_predictions(options.round, item, len(dataset.classes))[1] if taught else None
        name = options.prefix + PurePosixPath(item.id).with_name(Path(item.image).name).as_posix()
        return ImageRegions(item, name, labeled_regions(labels, sources, confidence, dataset.classes))

    EXPORTERS[options.format]((drawn(items[k]) for k in chosen), dataset.classes, options.out)  # an image at a time
    print(f"export: {len(chosen)} images in {options.out}")
