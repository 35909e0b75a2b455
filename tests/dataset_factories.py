"""Small data sets in the exact original layouts: real file names, label values, palettes and formats."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sesam.artifacts.manifest import ImageRecord, Manifest
from sesam.datasets.annotation_shapes import Shape
from sesam.datasets.annotations.image_names import ImageNames
from sesam.datasets.label_maps import LabelMap, label_map_for
from sesam.geometry.regions import Region

HEIGHT, WIDTH = 32, 48
THREE = ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180))  # class names and colors


def image_names(*train: str, val: Iterable[str] = ()) -> ImageNames:
    """The names of a data set of format folder with these ids."""
    records = [
        [ImageRecord(k, f"mine/images/{split}/{k}.png", HEIGHT, WIDTH, "0" * 64) for k in ids]
        for split, ids in (("train", train), ("val", val))
    ]
    return ImageNames(*records)


def make_label_map(
    dataset_format: str,
    num_classes: int,
    ignore_values: Sequence[int] = (),
    mapped: dict[str, str | None] | None = None,
) -> LabelMap:
    """The label map of a data set with classes c0, c1, …"""
    names, palette = tuple(f"c{k}" for k in range(num_classes)), tuple((k + 1, 9, 200) for k in range(num_classes))
    return label_map_for(Manifest("mine", names, palette, (), (), dataset_format, tuple(ignore_values), mapped or {}))


def save(path: Path, values: np.ndarray, palette: list | None = None) -> None:
    """A PNG or JPEG; uint8 (H, W) as a palette PNG if there is a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(np.array(palette, np.uint8).tobytes())
    picture.save(path)


def whole_mask(shape: Shape, size: tuple[int, int], thickness: int = 1, radius: int = 1) -> np.ndarray:
    """A shape's pixels in an image of `size` (H, W), bool."""
    mask = np.zeros(size, bool)
    window, part = shape.draw(size, thickness, radius)
    mask[window] = part
    return mask


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def halves(left: int, right: int, edge: int = 0) -> np.ndarray:
    """A label of two values, with a frame of a third."""
    label = np.full((HEIGHT, WIDTH), edge, np.uint8)
    label[2:-2, 2 : WIDTH // 2] = left
    label[2:-2, WIDTH // 2 : -2] = right
    return label


def cityscapes_image(root: Path, split: str, name: str, image: np.ndarray, fine, coarse=None) -> None:
    """All files of one Cityscapes image. fine, coarse: label ids (H, W) uint8 or None."""
    city = name.split("_")[0]
    save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", image)
    for kind, ids in (("gtFine", fine), ("gtCoarse", coarse)):
        if ids is not None:
            start = f"{kind}/{split}/{city}/{name}_{kind}_"
            save(root / f"{start}labelIds.png", ids)
            save(root / f"{start}color.png", np.dstack([ids, ids, ids, np.full_like(ids, 255)]))
            save(root / f"{start}instanceIds.png", ids.astype(np.uint16) * 1000)
            outlines = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": [{"label": "road", "polygon": [[0, 0]]}]}
            (root / f"{start}polygons.json").write_text(json.dumps(outlines))


CITYSCAPES_IDS = ["aachen_000000_000019", "aachen_000001_000019", "zurich_000121_000019"]


def cityscapes(root: Path) -> None:
    """Three training images, one of train_extra, one to validate on; road and car in all, coarsely labeled inside."""
    fine, coarse = halves(7, 26, edge=3), np.zeros((HEIGHT, WIDTH), np.uint8)
    coarse[8:20, 6:18], coarse[8:20, 30:42] = 7, 26
    for seed, name in enumerate(CITYSCAPES_IDS):
        cityscapes_image(root, "train", name, photo(seed), fine, coarse)
    cityscapes_image(root, "train_extra", "augsburg_000000_000000", photo(7), None, coarse)
    cityscapes_image(root, "val", "frankfurt_000000_000294", photo(8), fine, coarse)


def ade20k(root: Path) -> None:
    for split, short, count in (("training", "train", 3), ("validation", "val", 1)):
        for k in range(1, count + 1):
            name = f"ADE_{short}_{k:08d}"
            save(root / f"images/{split}/{name}.jpg", photo(100 * count + k))
            save(root / f"annotations/{split}/{name}.png", halves(1, 150))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\n")


def voc_palette() -> list[tuple[int, int, int]]:
    """VOC's color map: the bits of the index spread over the channels, highest first."""
    return [
        tuple(sum((k >> (3 * place + channel) & 1) << (7 - place) for place in range(3)) for channel in range(3))
        for k in range(256)
    ]


def voc(root: Path, lists: dict[str, Iterable[str]] | None = None, more: Iterable[str] = ()) -> None:
    """VOC2012 with its split files. more: ids labeled in SegmentationClassAug, in gray as it is handed around."""
    lists = lists or {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    for name, ids in lists.items():
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{k}\n" for k in ids))
    original = {k for name in ("train", "val") for k in lists[name]}
    for k in original | set(more):
        save(root / f"JPEGImages/{k}.jpg", photo(int(k.replace("_", "")) % 1000))
        if k in original:
            save(root / f"SegmentationClass/{k}.png", halves(0, 15, edge=255), voc_palette())
    for k in more:
        save(root / f"SegmentationClassAug/{k}.png", halves(0, 8, edge=255))


def scribblesup(root: Path, name: str, strokes: list[tuple[str, list[tuple[int, int]]]]) -> None:
    """An XML file as ScribbleSup ships it."""
    polygons = "".join(
        f"<polygon><tag>{tag}</tag>{''.join(f'<point><X>{x}</X><Y>{y}</Y></point>' for x, y in points)}</polygon>"
        for tag, points in strokes
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.xml").write_text(
        f"<annotation><folder>pascal_2012</folder><filename>{name}.jpg</filename>"
        f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size><segmented>1</segmented>"
        f"{polygons}</annotation>"
    )


def whats_the_point(path: Path, clicks: dict[str, list[tuple[int, int, int]]]) -> None:
    def written(points: list[tuple[int, int, int]]) -> list[dict[str, int]]:
        return [{"x": x, "y": y, "cls": c, "rank": rank} for rank, (x, y, c) in enumerate(points, 1)]

    path.write_text(json.dumps({k: written(points) for k, points in clicks.items()}))


CAMVID_NAMES = {
    "train": ["0001TP_006690", "0006R0_f00930", "0016E5_00390", "0016E5_07950", "0016E5_07980"],
    "val": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}


def camvid_colors() -> np.ndarray:
    """A label in published colors: sky above, then road with a lane marking, and void."""
    label = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    label[:16], label[16:28], label[20:22] = (128, 128, 128), (128, 64, 128), (128, 0, 192)
    return label


def camvid(root: Path, form: str = "published") -> None:
    """published: 701_StillsRaw_full; colors: SPLIT and SPLIT_labels; index: SPLIT and SPLITannot, 11 = void."""
    indexed = np.full((HEIGHT, WIDTH), 11, np.uint8)
    indexed[:16], indexed[16:28] = 0, 3
    for split, names in CAMVID_NAMES.items():
        for k, name in enumerate(names):
            images, label = {
                "published": ("701_StillsRaw_full", f"LabeledApproved_full/{name}_L"),
                "colors": (split, f"{split}_labels/{name}_L"),
                "index": (split, f"{split}annot/{name}"),
            }[form]
            save(root / f"{images}/{name}.png", photo(100 * len(split) + k))
            save(root / f"{label}.png", indexed if form == "index" else camvid_colors())


def custom_folder(root: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for k in range(count):
            save(root / f"images/{split}/{k}.jpg", photo(10 * count + k))
            save(root / f"labels/{split}/{k}.png", halves(0, 1, edge=255))


FACTORIES = {"cityscapes": cityscapes, "ade20k": ade20k, "voc": voc, "camvid": camvid, "folder": custom_folder}


def connected(mask: np.ndarray, min_area: int = 1, connectivity: int = 8) -> Iterator[Region]:
    """The 8- or 4-connected regions of (H, W) bool of at least `min_area` pixels, in scan order."""
    count, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    for k in range(1, count):
        left, top, width, height, area = stats[k]
        if area >= min_area:
            yield Region(int(top), int(left), ids[top : top + height, left : left + width] == k)
