"""Training examples of the bundled SAM: photographs and drawn scenes with numbered regions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sesam.artifacts.image_io import read_image, read_label
from sesam.demo.scenes import draw_scene
from sesam.errors import SesamError
from sesam.labels import IGNORE_INDEX

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Example:
    """An image (H, W, 3) uint8 RGB and its maps of region numbers (H, W) uint16, 0 = unlabeled."""

    image: np.ndarray
    maps: Sequence[np.ndarray]


@dataclass(frozen=True)
class Photograph:
    """The files of a photograph and of its region maps, one per annotator."""

    image: Path
    maps: tuple[Path, ...]

    def read(self, rng: np.random.Generator) -> Example:
        """The photograph with one of its maps; SesamError if one cannot be read or their sizes differ."""
        path = self.maps[rng.integers(len(self.maps))]
        image = read_image(self.image)
        try:
            with Image.open(path, formats=("PNG",)) as opened:
                numbers = np.array(opened)
        except OSError as problem:
            raise SesamError(f"{path} cannot be read as a PNG ({problem}). Replace it with an intact copy.") from None
        if numbers.ndim != 2 or not np.issubdtype(numbers.dtype, np.integer):
            raise SesamError(f"{path} has mode {opened.mode}; expected one channel of region numbers, 8 or 16 bits.")
        if numbers.shape != image.shape[:2]:
            raise SesamError(f"{path} is {numbers.shape[::-1]}, its photograph {image.shape[1::-1]} pixels.")
        return Example(image, [numbers.astype(np.uint16)])


def find_photographs(root: Path) -> dict[str, list[Photograph]]:
    """The photographs of each set: images/SET/ID.jpg with regions/SET/ID.png, or ID.1.png, ID.2.png, … of annotators.

    SesamError if there are none, or one has no regions.
    """
    photographs: dict[str, list[Photograph]] = {}
    for image in sorted((root / "images").glob("*/*")):
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        folder = root / "regions" / image.parent.name
        names = (folder / f"{image.stem}.png", *sorted(folder.glob(f"{image.stem}.*.png")))
        maps = tuple(path for path in names if path.is_file())
        if not maps:
            raise SesamError(f"{image} has no regions; expected {folder / image.stem}.png or {image.stem}.1.png there.")
        photographs.setdefault(image.parent.name, []).append(Photograph(image, maps))
    if not photographs:
        raise SesamError(f"{root} holds no images/SET/ID.jpg. Give the folder with images and regions.")
    return photographs


def draw_example(seed: tuple[int, ...]) -> Example:
    """The drawn scene of a seed, with a map of its classes and one of its objects."""
    scene = draw_scene(seed)
    return Example(scene.image, [scene.labels.astype(np.uint16) + 1, scene.instances.astype(np.uint16) + 1])


def read_labeled(root: Path, void: Sequence[int], count: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """For evaluation: images/val/ID and labels/val/ID.png of a folder as pairs of RGB and class ids, 255 = no class.

    void: label values without a class. count: how many; None: all. SesamError if a file is missing or damaged, or a
    label and its image differ in size.
    """
    pairs = []
    for path in sorted((root / "labels/val").glob("*.png"))[:count]:
        images = [path for path in (root / "images/val").glob(f"{path.stem}.*") if path.suffix in IMAGE_SUFFIXES]
        if not images:
            raise SesamError(f"{path} has no image in {root / 'images/val'}.")
        image, labels = read_image(images[0]), read_label(path)
        if labels.shape != image.shape[:2]:
            (height, width), side = labels.shape, image.shape
            raise SesamError(f"{path} is {width}x{height} pixels, its image {side[1]}x{side[0]}. Replace one of them.")
        labels[np.isin(labels, void)] = IGNORE_INDEX
        pairs.append((image, labels))
    if not pairs:
        raise SesamError(f"{root} holds no labels/val/ID.png to evaluate on.")
    return pairs
