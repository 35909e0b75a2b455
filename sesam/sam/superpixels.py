"""The baseline without training: regions of similar color instead of SAM's masks.

Superpixels (SLIC, Achanta et al. 2012) are merged, neighbors with the nearest mean colors first, up to three distances,
for three candidates. A pipeline's gain with this baseline comes from its rules and not from SAM.
"""

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import torch
from skimage.color import rgb2lab
from skimage.graph import RAG, merge_hierarchical, rag_mean_color
from skimage.segmentation import slic
from torch import Tensor

from sesam.geometry.rle import mask_to_counts, rle_to_mask
from sesam.sam.batched_sam import preprocess
from sesam.sam.sam_model import MaskPredictions, Prompt

SIDE = 256  # pixels of the longer side
SUPERPIXELS = 600  # at most 2048: float16 holds their numbers exactly
SCALES = (5.0, 10.0, 20.0)  # mean colors nearer than this are merged; distances in CIELAB


def merge_superpixels(image: np.ndarray) -> np.ndarray:
    """An image (h, w, 3) uint8 RGB in regions at each of SCALES, finest first, (3, h, w) int."""
    lab = rgb2lab(image)
    labels, maps = slic(image, SUPERPIXELS, start_label=0), []
    functions = {"merge_func": _pool, "weight_func": _distance}
    for scale in SCALES:
        if labels.max() > 0:  # one region has no graph
            graph = rag_mean_color(lab, labels)
            labels = merge_hierarchical(labels, graph, scale, rag_copy=False, in_place_merge=True, **functions)
        maps.append(labels)
    return np.stack(maps)


def _pool(graph: RAG, source: int, target: int) -> None:
    """Called before `source` is merged into `target`: the mean color of both."""
    into, node = graph.nodes[target], graph.nodes[source]
    into["total color"] += node["total color"]
    into["pixel count"] += node["pixel count"]
    into["mean color"] = into["total color"] / into["pixel count"]


def _distance(graph: RAG, source: int, target: int, neighbor: int) -> dict[str, float]:
    difference = graph.nodes[target]["mean color"] - graph.nodes[neighbor]["mean color"]
    return {"weight": float(np.linalg.norm(difference))}


def candidates_for(regions: np.ndarray, prompt: Prompt, size: tuple[int, int]) -> MaskPredictions:
    """Per scale the union of the regions, of (3, h, w), that a prompt in an image of `size` (height, width) selects.

    Points select the regions that they are in; a box or mask those that it covers by more than half; none is selected
    that holds a background point. The predicted IoU is the largest share of one region in the prompt's pixels, a little
    less at coarser scales.
    """
    height, width = regions.shape[1:]
    scale, last = np.array([width / size[1], height / size[0]]), np.array([width - 1, height - 1])
    prompted = np.zeros((height, width), bool)
    cells = np.empty((0, 2), int)
    if prompt.points is not None:
        cells = np.minimum((prompt.points * scale).astype(int), last)
    foreground, background = (cells[prompt.point_labels == label].T for label in (1, 0))
    if foreground.size:
        prompted[foreground[1], foreground[0]] = True
    elif prompt.box is not None:  # at least one pixel, however small the box
        left, top = np.minimum((prompt.box[:2] * scale).round().astype(int), last)
        right, bottom = np.maximum((prompt.box[2:] * scale).round().astype(int), [left + 1, top + 1])
        prompted[top:bottom, left:right] = True
    elif prompt.mask is not None:  # one pixel of the mask is enough, so that thin parts stay
        full = rle_to_mask(prompt.mask, size).astype(np.float32)
        prompted = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA) > 0
    counts, iou = [], []
    for k, ids in enumerate(regions):
        inside, area = np.bincount(ids[prompted], minlength=ids.max() + 1), np.bincount(ids.ravel())
        selected = inside > 0 if foreground.size else inside > 0.5 * area
        selected[ids[background[1], background[0]]] = False
        mask = cv2.resize(selected[ids].astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
        counts.append(mask_to_counts(mask))
        iou.append(inside.max() / inside.sum() - 0.01 * k)
    return MaskPredictions(counts, np.array(iou, np.float32))


class Superpixels:
    """A SamModel whose embedding of an image is its maps of merged superpixels."""

    device = torch.device("cpu")  # it has no code for a GPU
    preprocess = staticmethod(partial(preprocess, side=SIDE))

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(merge_superpixels(image.numpy())).half() for image in images]

    def decode(
        self, embeddings: Sequence[Tensor], sizes: Sequence[tuple[int, int]], prompts: Sequence[Sequence[Prompt]]
    ) -> list[list[MaskPredictions]]:
        images = zip([embedding.numpy().astype(int) for embedding in embeddings], sizes, prompts, strict=True)
        return [[candidates_for(regions, x, size) for x in of_image] for regions, size, of_image in images]
