"""How much of each class a data set has: shown by `prepare`, so that a label value misread as a class is seen."""

from collections.abc import Sequence

import numpy as np

from sesam.labels import IGNORE_INDEX, count_values

MIN_RATIO = 1e-4  # of the labeled pixels
MAX_RATIO = 0.8
# "no class" read as a class: it frames nearly every other class of an image, and is thin. CamVid's void touches 0.96 of
# them and is 0.24 border; its classes touch at most 0.85, and IDD's 0.95, but that one is 0.11 border.
NEIGHBORS, BORDER = 0.9, 0.16


def count_classes(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """Of each class its pixels, those on its border, and how many other classes it touches; (3, K) int64.

    ids: (H, W) uint8 class ids, 255 = none. The border is where the pixel to the right or below is another class.
    """
    found = []
    for one, other in ((ids[:, :-1], ids[:, 1:]), (ids[:-1], ids[1:])):
        edges = one != other
        found.append([one[edges], other[edges]])
    pairs = np.concatenate(found, axis=1).astype(np.int64)
    pairs = pairs[:, (pairs != IGNORE_INDEX).all(0)]
    touching = np.zeros((256, 256), bool)
    touching[pairs[0], pairs[1]] = touching[pairs[1], pairs[0]] = True
    border = np.bincount(pairs.ravel(), minlength=256)
    return np.stack([count_values(ids), border, touching.sum(1)])[:, :num_classes]


def class_table(counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """A line per class: its share of labeled pixels, its number of images. counts: (images, 3, K), see above."""
    pixels, images = counts[:, 0].sum(0), (counts[:, 0] > 0).sum(0)
    ratios, width = pixels / max(1, pixels.sum()), max(map(len, classes))
    return [
        f"{name:{width}}  {ratio:8.3%} of the pixels, in {number} of {len(counts)} images"
        for name, ratio, number in zip(classes, ratios, images, strict=True)
    ]


def suspicious_classes(counts: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Warnings of classes that look like label values misread. counts: (images, 3, K) of `count_classes`."""
    here = counts[:, 0] > 0
    pixels, images = counts[:, 0].sum(0), here.sum(0)
    ratio = pixels / max(1, pixels.sum())
    odd = ((ratio > 0) & (ratio < MIN_RATIO)) | (ratio > MAX_RATIO)
    others = np.maximum(1, here.sum(1, keepdims=True) - 1)
    neighbors = (here * counts[:, 2] / others).sum(0) / np.maximum(1, images)
    border = counts[:, 1].sum(0) / np.maximum(1, 2 * pixels)  # each place between two pixels was counted for both
    thin = (images > len(counts) / 2) & (len(classes) > 3) & (neighbors >= NEIGHBORS) & (border >= BORDER)
    return [f"class {classes[k]} has {ratio[k]:.3%} of the pixels." for k in np.flatnonzero(odd).tolist()] + [
        f"class {classes[k]} thinly surrounds nearly every other class, as pixels without a class do. If "
        "its label value is not a class, list it in dataset.ignore_values."
        for k in np.flatnonzero(thin).tolist()
    ]
