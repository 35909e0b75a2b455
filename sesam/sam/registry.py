"""The SAM models that `sam.model` can name.

A model is a `SamModel`: it encodes images and decodes prompts. To add one, add an entry to `MODELS`. A model's
libraries are imported when it is loaded, so that this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sesam.errors import SesamError
from sesam.params import Runtime, SamParams

if TYPE_CHECKING:
    import torch

    from sesam.sam.sam_model import SamModel


@dataclass(frozen=True)
class Model:
    """How a SAM is loaded, and its published weights; without them `sam.checkpoint` names some, or it has none."""

    load: Callable[..., SamModel]  # of weights: Path, device, sam: SamParams, runtime: Runtime | None
    embedding_bytes: int  # of one image, on disk
    url: str | Path | None = None  # of the published weights, or their path in this package
    sha256: str = ""  # of the published weights
    needs_checkpoint: bool = False


def _load_sam(weights: Path, device: torch.device, sam: SamParams, runtime: Runtime | None) -> SamModel:
    from sesam.sam.batched_sam import BatchedSam, load_meta_sam
    from sesam.sam.bundled import build_bundled_sam
    from sesam.sam.segment_anything_parts import sam_model_registry

    build = build_bundled_sam if sam.model == "bundled" else sam_model_registry[sam.model]
    return BatchedSam(load_meta_sam(build, weights), device, sam.dtype, runtime)


def _load_transformers(weights: Path, device: torch.device, sam: SamParams, runtime: Runtime | None) -> SamModel:
    from sesam.sam.huggingface import load_family

    return load_family(weights, device, sam, runtime)


def _load_concepts(weights: Path, device: torch.device, sam: SamParams, runtime: Runtime | None) -> SamModel:
    from sesam.sam.concepts import load_concept_sam

    return load_concept_sam(weights, device, sam, runtime)


def _load_superpixels(*_: object) -> SamModel:
    from sesam.sam.superpixels import Superpixels

    return Superpixels()


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
MODELS = {  # embeddings are float16, 2 bytes per value
    "bundled": Model(
        _load_sam,
        2 * 128 * 40**2,
        Path(__file__).with_name("bundled_sam.pth"),
        "8466ca2f08954706318568023779cc8d49665eb9a629cf755937dc0d3105ca1b",
    ),
    **{
        name: Model(_load_sam, 2 * 256 * 64**2, f"{_META}sam_{name}_{version}.pth", digest)
        for name, version, digest in (
            ("vit_b", "01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
            ("vit_l", "0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
            ("vit_h", "4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        )
    },
    "sam2": Model(_load_transformers, 2 * (32 * 256**2 + 64 * 128**2 + 256 * 64**2), needs_checkpoint=True),
    "sam3_tracker": Model(_load_transformers, 2 * (32 * 288**2 + 64 * 144**2 + 256 * 72**2), needs_checkpoint=True),
    "sam3": Model(_load_concepts, 2 * 1024 * 72**2, needs_checkpoint=True),
    "sam_hq_b": Model(_load_transformers, 2 * (32 * 256**2 + 256 * 64**2), needs_checkpoint=True),
    "sam_hq_l": Model(_load_transformers, 2 * (32 * 256**2 + 256 * 64**2), needs_checkpoint=True),
    "sam_hq_h": Model(_load_transformers, 2 * (32 * 256**2 + 256 * 64**2), needs_checkpoint=True),
    "superpixels": Model(_load_superpixels, 2 * 3 * 256**2),  # not a SAM: the baseline without training
}


def get_model(name: str) -> Model:
    """The entry of MODELS; SesamError for an unknown name."""
    if name not in MODELS:
        raise SesamError(f"params.yaml: sam.model is {name!r}; known are {', '.join(MODELS)}.")
    return MODELS[name]
