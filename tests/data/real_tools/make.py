"""Annotations as the tools' own libraries write them, and what each library draws: see README.md."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datumaro import AnnotationType, Bbox, Dataset, DatasetItem, Mask, Points, Polygon, PolyLine
from datumaro import Image as Media
from datumaro.components.annotation import RotatedBbox
from label_studio_sdk.converter import Converter, brush
from label_studio_sdk.converter.imports import coco as studio
from label_studio_sdk.converter.utils import convert_annotation_to_yolo_obb
from labelme import LabelFile, utils
from PIL import Image
from pycocotools.coco import COCO

CLASSES = ["road", "wall", "car", "tree", "sky", "person"]
FILLED = ["polygon", "circle", "mask", "mixed"]  # kinds of images; of the rest, coordinates are kept
LABELME = {"box": "rectangle", "rotated": "oriented_rectangle", "line": "linestrip"}  # its names of kinds
SIZES = [(61, 97), (97, 61), (75, 128), (90, 143)]  # H, W
rng = np.random.default_rng(5)
coordinates: dict[str, dict[str, list]] = {"cvat": {}, "label_studio": {}, "labelme": {}}  # by tool and image


def draw(kind: str, size: tuple[int, int]) -> tuple[int, str, np.ndarray, int]:
    """A shape: its class, its kind, its numbers, its z-order."""
    points, many = rng.uniform(0, size[::-1], (4, 2)).round(2), rng.integers(3, 12)
    low, high = points[:2].min(0), points[:2].max(0) + 1
    kind = str(rng.choice(FILLED[:3])) if kind == "mixed" else kind
    if kind == "polygon":  # a star that touches the border, or crosses itself
        turns = rng.uniform(0, 2 * np.pi, many)
        turns, radius = np.sort(turns) if rng.random() < 0.8 else turns, rng.uniform(9, 60, (many, 1))
        points = (points[0] + radius * np.stack([np.cos(turns), np.sin(turns)], 1)).clip(0, size[::-1]).round(2)
    elif kind == "mask":  # dabs of a brush
        at, dabs = np.mgrid[: size[0], : size[1]], zip(rng.uniform(0, size, (6, 2)), rng.uniform(2, 12, 6), strict=True)
        points = np.any([np.hypot(*(at - dab[:, None, None])) < radius for dab, radius in dabs], axis=0)
    elif kind in ("box", "rotated"):
        points = np.array([low, high, [rng.uniform(1, 359) * (kind == "rotated"), 0]]).round(2)
    counts = {"circle": 2, "point": 1}
    return int(rng.integers(6)), kind, points[: counts.get(kind)], int(rng.integers(4))


IMAGES = {}
for number, name in enumerate(f"{kind}_{k}" for kind in (*FILLED, "box", "rotated", "line", "point") for k in range(3)):
    size = SIZES[number % 4]
    IMAGES[name] = size, [draw(name.split("_")[0], size) for _ in range(rng.integers(2, 7))]


def labelme(out: Path) -> Iterator[tuple[str, np.ndarray]]:
    for name, (size, shapes) in IMAGES.items():
        drawn = []
        for k, kind, numbers, _ in shapes:
            shape: dict[str, Any] = {"label": CLASSES[k], "group_id": None, "flags": {}}
            if kind == "mask":
                (top, left), (bottom, right) = np.argwhere(numbers).min(0), np.argwhere(numbers).max(0)
                window = numbers[top : bottom + 1, left : right + 1].astype(np.uint8)
                numbers, shape["mask"] = np.array([[left, top], [right, bottom]]) + 0.6, utils.img_arr_to_b64(window)
            elif kind == "rotated":
                (x, y), (width, height) = numbers[:2].mean(0), numbers[1] - numbers[0]
                numbers = np.reshape(RotatedBbox(x, y, width, height, numbers[2, 0]).as_polygon(), (4, 2))
            points = (numbers[:2] if kind == "box" else numbers).tolist()
            drawn.append(shape | {"shape_type": LABELME.get(kind, kind), "points": points})
        if not name.startswith((*FILLED, "rotated")):
            coordinates["labelme"][name] = [np.ravel(shape["points"]).tolist() for shape in drawn]
        path = out / f"{name}.json"
        Image.new("RGB", size[::-1]).save(path.with_suffix(".png"))  # labelme opens it
        LabelFile().save(str(path), drawn, f"{name}.png", *size)
        labels, _ = utils.shapes_to_label(size, LabelFile(str(path)).shapes, {k: n for n, k in enumerate(CLASSES, 1)})
        path.with_suffix(".png").unlink()
        if name not in coordinates["labelme"]:
            yield name, np.where(labels, labels - 1, 255)


def to_datumaro(kinds: str) -> Dataset:
    def annotation(k: int, kind: str, numbers: np.ndarray, z: int) -> Any:
        if kind in ("box", "rotated"):
            (x, y), (width, height), angle = numbers[0], numbers[1] - numbers[0], numbers[2, 0]
            center = x + width / 2, y + height / 2
            box = RotatedBbox(*center, width, height, angle) if angle else Bbox(x, y, width, height)
            return box.wrap(label=k, z_order=z)
        made = {"polygon": Polygon, "line": PolyLine, "point": Points, "mask": Mask}[kind]
        return made(numbers if kind == "mask" else numbers.ravel().tolist(), label=k, z_order=z)

    items = []
    for name, (size, shapes) in IMAGES.items():
        if found := [annotation(*shape) for shape in shapes if shape[1] in kinds.split()]:
            items.append(DatasetItem(name, media=Media.from_numpy(np.zeros((*size, 3), np.uint8)), annotations=found))
    return Dataset.from_iterable(items, categories=CLASSES)


def from_datumaro(dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    for item in dataset:
        if item.id.startswith(tuple(FILLED)):
            yield item.id, item.annotations.get_semantic_seg_mask(ignore_index=255)


def cvat(out: Path) -> Iterator[tuple[str, np.ndarray]]:
    to_datumaro("polygon mask box rotated line point").export(str(out), "cvat", save_media=True)
    again = Dataset.import_from(str(out), "cvat")
    for item in again:
        shapes = sorted(item.annotations, key=lambda shape: shape.z_order)
        if not item.id.startswith(tuple(FILLED)):
            boxes = (AnnotationType.bbox, AnnotationType.rotated_bbox)
            found = [np.ravel(x.as_polygon() if x.type in boxes else x.points) for x in shapes]
            coordinates["cvat"][item.id] = [numbers.tolist() for numbers in found]
    return from_datumaro(again.transform("polygons_to_masks"))


def masks(out: Path) -> Iterator[tuple[str, np.ndarray]]:
    """As CVAT's "Segmentation mask 1.1", which is Datumaro's Pascal VOC."""
    dataset = to_datumaro("polygon mask").transform("polygons_to_masks")
    colors = {name: [(40 * k, 30, 255 - 40 * k), [], []] for k, name in enumerate(CLASSES)}
    dataset.export(str(out), "voc_segmentation", label_map={"background": [(0, 0, 0), [], []]} | colors)
    return from_datumaro(dataset)


def from_coco(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """As pycocotools draws them, in the file's order."""
    tool = COCO(str(path))
    for image in tool.imgs.values():
        labels = np.full((image["height"] or 0, image["width"] or 0), 255)
        for annotation in tool.imgToAnns[image["id"]]:
            labels[tool.annToMask(annotation) > 0] = CLASSES.index(tool.cats[annotation["category_id"]]["name"])
        yield Path(image["file_name"].split("=")[-1]).stem, labels


def coco(out: Path) -> Iterator[tuple[str, np.ndarray]]:
    to_datumaro("polygon mask").export(str(out), "coco_instances")
    return from_coco(out / "annotations/instances_default.json")


def label_studio(out: Path) -> Iterator[tuple[str, np.ndarray]]:
    with TemporaryDirectory() as folder:
        to_datumaro("polygon").export(folder, "coco_instances")
        path = Path(folder, "annotations/instances_default.json")
        document = json.loads(path.read_text())
        for annotation in document["annotations"]:
            del annotation["bbox"]  # it would be a rectangle beside the polygon
        path.write_text(json.dumps(document))
        studio.convert_coco_to_ls(str(path), str(out / "tasks.json"))
        (out / "tasks.label_config.xml").unlink()
        tasks = {task["data"]["image"]: task for task in json.loads((out / "tasks.json").read_text())}
        for number, (name, (size, shapes)) in enumerate(IMAGES.items()):
            new = studio.new_task("annotations", "/data/local-files/?d=", f"{name}.jpg")
            task = tasks.setdefault(new["data"]["image"], new)
            task["id"], results, known = number, task["annotations"][0]["result"], dict(enumerate(CLASSES))
            for k, kind, numbers, _ in shapes:
                if kind == "mask":
                    Image.fromarray(numbers).save(mask := f"{folder}/mask.png")
                    results += brush.image2annotation(mask, CLASSES[k], "brush", "image")["result"]
                elif kind in ("box", "rotated"):
                    box = {"category_id": k, "bbox": [*numbers[0], *(numbers[1] - numbers[0])]}
                    results.append(studio.create_bbox(box, known, "box", *size, "image"))
                    results[-1]["value"]["rotation"] = numbers[2, 0]
                    corners = convert_annotation_to_yolo_obb(results[-1] | results[-1]["value"], normalize=False)
                    coordinates["label_studio"].setdefault(name, []).append(np.ravel(corners).tolist())
                elif kind == "point":
                    point = {"category_id": k, "keypoints": [*numbers[0], 2]}
                    results += studio.create_keypoints(point, known, "point", "image", *size, 1)
                    coordinates["label_studio"].setdefault(name, []).append(numbers.ravel().tolist())
        written = [task for task in tasks.values() if task["annotations"][0]["result"]]
        (out / "tasks.json").write_text(json.dumps(written))
        tags = '<PolygonLabels name="labelpolygons" toName="image"/><BrushLabels name="brush" toName="image"/>'
        converter = Converter(f'<View><Image name="image" value="$image"/>{tags}</View>', folder)
        converter.convert(str(out / "tasks.json"), folder, "COCO", is_dir=False)
        drawn = dict(from_coco(Path(folder, "result.json")))  # polygons alone
    for name, (size, _) in IMAGES.items():
        if name.startswith(tuple(FILLED)) and f"/data/local-files/?d={name}.jpg" in tasks:
            labels = drawn[name] if drawn.get(name, np.empty(0)).size else np.full(size, 255)
            for result in tasks[f"/data/local-files/?d={name}.jpg"]["annotations"][0]["result"]:
                if result["type"] == "brushlabels":
                    alpha = brush.decode_rle(result["value"]["rle"]).reshape(*size, 4)[..., 3]
                    labels[alpha > 0] = CLASSES.index(result["value"]["brushlabels"][0])
            if (labels < 255).any():
                yield name, labels


with TemporaryDirectory() as temporary:
    for tool in (labelme, cvat, masks, coco, label_studio):
        (files := Path(temporary, tool.__name__)).mkdir()
        for name, labels in tool(files):
            path = Path(temporary, "labels", tool.__name__, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(labels, np.uint8)).save(path, compress_level=0)  # the archive compresses better
    Path(temporary, "coordinates.json").write_text(json.dumps(coordinates))
    with tarfile.open(Path(__file__).with_name("annotations.tar.xz"), "w:xz") as archive:
        for path in sorted(Path(temporary).rglob("*")):
            unused = path.parent.name in ("SegmentationObject", "Segmentation")  # of VOC
            if path.suffix in (".json", ".xml", ".png", ".txt") and not unused:
                entry = tarfile.TarInfo(path.relative_to(temporary).as_posix())
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
