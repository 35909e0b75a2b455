"""SAM's candidate masks for every component's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from sesam.artifacts.component_records import Candidate, Component, read_prompts, write_candidates
from sesam.artifacts.manifest import ImageRecord, load_image
from sesam.execution.pipeline import PipelineSteps
from sesam.geometry.rle import counts_to_rle
from sesam.params import Params
from sesam.sam.cache import EmbeddingCache
from sesam.sam.checkpoints import load_segmenter
from sesam.sam.segmenter import Candidates, Preprocess, Prompt, Segmenter


def component_prompts(components: Sequence[Component]) -> list[Prompt]:
    """The prompts of an image's components, in their order."""
    prompt_of = {
        "points": lambda component: Prompt(points=np.array(component.points)),
        "box": lambda component: Prompt(box=np.array(component.box)),
        "mask": lambda component: Prompt(mask=component.rle),
    }
    return [prompt_of[component.prompt_type](component) for component in components]


class LoadedImage(NamedTuple):
    """An image as it is read: its components' numbers and prompts, its embedding or, if that is not cached, itself."""

    item: ImageRecord
    numbers: list[int]
    prompts: list[Prompt]
    embedding: Tensor | None
    image: Tensor | None


def read(item: ImageRecord, prompts: Path, cache: EmbeddingCache, fit: Preprocess) -> LoadedImage:
    embedding = cache.load(item)
    image = fit(load_image(item)) if embedding is None else None
    components = read_prompts(prompts / f"{item.id}.json", item)
    numbers = [component.number for component in components]
    return LoadedImage(item, numbers, component_prompts(components), embedding, image)


def compute(
    loaded: list[LoadedImage], segmenter: Segmenter
) -> list[tuple[ImageRecord, dict[int, Candidates], np.ndarray | None]]:
    """What `write` takes, for each image."""
    new = iter(segmenter.encode([one.image for one in loaded if one.image is not None]))
    embeddings = [next(new) if one.embedding is None else one.embedding for one in loaded]
    sizes = [(one.item.height, one.item.width) for one in loaded]
    found = segmenter.decode(embeddings, sizes, [one.prompts for one in loaded])
    return [
        (
            one.item,
            dict(zip(one.numbers, candidates, strict=True)),
            embedding.numpy() if one.embedding is None else None,
        )
        for one, candidates, embedding in zip(loaded, found, embeddings, strict=True)
    ]


def write(
    item: ImageRecord,
    found: dict[int, Candidates],
    fresh: np.ndarray | None,
    folder: Path,
    cache: EmbeddingCache | None,
) -> None:
    """An image's candidates by component number: COCO run lengths and predicted IoU; a new embedding to the cache."""
    if cache and fresh is not None:
        cache.save(item, fresh)
    shape = (item.height, item.width)
    candidates = {number: to_candidates(masks, shape) for number, masks in found.items()}
    write_candidates(folder / f"{item.id}.json", item, candidates)


def to_candidates(masks: Candidates, shape: tuple[int, int]) -> list[Candidate]:
    """A prompt's masks as records, for an image of (height, width) `shape`."""
    return [
        Candidate(round(float(iou), 5), counts_to_rle(counts, shape))
        for counts, iou in zip(masks.counts, masks.iou, strict=True)
    ]


def steps(params: Params, prompts: Path, folder: Path, cache: EmbeddingCache, keep: bool) -> PipelineSteps:
    segmenter = load_segmenter(params)
    return PipelineSteps(
        partial(read, prompts=prompts, cache=cache, fit=segmenter.preprocess),
        partial(compute, segmenter=segmenter),
        partial(write, folder=folder, cache=cache if keep else None),
        segmenter.device,
    )
