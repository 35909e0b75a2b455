"""The params' SAM, and the steps of the stages embed and sam_masks: encode images, decode prompts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sesam.artifacts.component_records import Candidate, Component, read_prompts, write_candidates
from sesam.artifacts.manifest import ImageRecord, load_image
from sesam.execution.batches import BatchSteps
from sesam.execution.device import resolve_device
from sesam.geometry.rle import counts_to_rle
from sesam.params import Params
from sesam.sam.cache import EmbeddingCache
from sesam.sam.checkpoints import Weights, resolve_weights
from sesam.sam.registry import get_model
from sesam.sam.sam_model import MaskPredictions, Preprocess, Prompt, SamModel


def load_sam_from_params(params: Params, weights: Weights | None = None) -> SamModel:
    """The model that the params name, on their device; SesamError if it cannot be loaded.

    weights: those that the starting process has resolved; resolved again only on a machine that lacks the file.
    """
    torch.backends.cudnn.allow_tf32 = False  # with it, a GPU's float32 convolutions have the digits of float16
    if weights is None or (weights.path is not None and not weights.path.is_file()):
        weights = resolve_weights(params.sam)
    model, device = get_model(params.sam.model), resolve_device(params.runtime)
    if weights.path and device.type == "cpu" and params.sam.dtype == "bfloat16" and not has_bfloat16():
        print("sam.dtype bfloat16 is slower than float32 on this CPU, which has no such products.", flush=True)
    return model.load(weights.path, device, params.sam, params.runtime)


def has_bfloat16() -> bool:
    """Whether this CPU computes bfloat16 products; True where PyTorch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", lambda: {"bf16": True})()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def component_prompts(components: Sequence[Component]) -> list[Prompt]:
    """The prompts of an image's components, in their order."""
    prompts = []
    for component in components:
        background = component.background_points or []
        points = [*(component.points or []), *background]
        prompts.append(
            Prompt(
                points=np.array(points) if points else None,
                box=np.array(component.box) if component.box else None,
                mask=component.rle if component.prompt_type == "mask" else None,
                num_background_points=len(background),
                concept=component.concept,
                exemplars=np.array(component.exemplars) if component.exemplars else None,
            )
        )
    return prompts


def to_candidates(masks: MaskPredictions, shape: tuple[int, int]) -> list[Candidate]:
    """A prompt's masks as records, for an image of (height, width) `shape`."""
    rles = [counts_to_rle(counts, shape) for counts in masks.counts]
    return [Candidate(round(float(iou), 5), rle) for iou, rle in zip(masks.predicted_iou, rles, strict=True)]


class PromptedImage(NamedTuple):
    """An image's component numbers, their prompts, and its embedding; if that is not cached, the image itself."""

    record: ImageRecord
    numbers: list[int]
    prompts: list[Prompt]
    embedding: Tensor | None
    image: Tensor | None


def read_image(record: ImageRecord, preprocess: Preprocess) -> tuple[ImageRecord, Tensor]:
    return record, preprocess(load_image(record))


def encode_images(batch: list[tuple[ImageRecord, Tensor]], sam_model: SamModel) -> list[tuple[ImageRecord, np.ndarray]]:
    records, images = zip(*batch, strict=True)
    return [(record, x.numpy()) for record, x in zip(records, sam_model.encode(images), strict=True)]


def read_prompted(record: ImageRecord, prompts: Path, cache: EmbeddingCache, preprocess: Preprocess) -> PromptedImage:
    embedding = cache.load(record)
    image = preprocess(load_image(record)) if embedding is None else None
    components = read_prompts(prompts / f"{record.id}.json", record)
    return PromptedImage(record, [x.number for x in components], component_prompts(components), embedding, image)


def decode_prompts(
    batch: list[PromptedImage], sam_model: SamModel
) -> list[tuple[ImageRecord, dict[int, MaskPredictions], np.ndarray | None]]:
    """The arguments of `write_masks`, per image."""
    encoded = iter(sam_model.encode([x.image for x in batch if x.image is not None]))
    embeddings = [next(encoded) if x.embedding is None else x.embedding for x in batch]
    sizes = [(x.record.height, x.record.width) for x in batch]
    decoded = sam_model.decode(embeddings, sizes, [x.prompts for x in batch])
    new = [embedding.numpy() if x.embedding is None else None for x, embedding in zip(batch, embeddings, strict=True)]
    masks = [dict(zip(x.numbers, candidates, strict=True)) for x, candidates in zip(batch, decoded, strict=True)]
    return list(zip([x.record for x in batch], masks, new, strict=True))


def write_masks(
    record: ImageRecord,
    masks: dict[int, MaskPredictions],
    new_embedding: np.ndarray | None,
    folder: Path,
    cache: EmbeddingCache | None,
) -> None:
    """Write an image's candidates by component number, as COCO run lengths; a new embedding goes to the cache."""
    if cache and new_embedding is not None:
        cache.save(record, new_embedding)
    candidates = {number: to_candidates(x, (record.height, record.width)) for number, x in masks.items()}
    write_candidates(folder / f"{record.id}.json", record, candidates)


def make_embed_steps(params: Params, weights: Weights, cache: EmbeddingCache) -> BatchSteps:
    sam_model = load_sam_from_params(params, weights)
    read, compute = partial(read_image, preprocess=sam_model.preprocess), partial(encode_images, sam_model=sam_model)
    return BatchSteps(read, compute, cache.save, sam_model.device)


def make_mask_steps(
    params: Params, weights: Weights, prompts: Path, folder: Path, cache: EmbeddingCache, keep: bool
) -> BatchSteps:
    """keep: whether embeddings that the cache lacks are added to it."""
    sam_model = load_sam_from_params(params, weights)
    return BatchSteps(
        partial(read_prompted, prompts=prompts, cache=cache, preprocess=sam_model.preprocess),
        partial(decode_prompts, sam_model=sam_model),
        partial(write_masks, folder=folder, cache=cache if keep else None),
        sam_model.device,
    )
