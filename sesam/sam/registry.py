"""The SAM models that `sam.model` can name.

A model is a `Segmenter`: it encodes images and decodes prompts. To add one, add an entry to `MODELS`. A model's
libraries are imported when it is loaded, so that this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sesam.errors import SesamError
from sesam.params import Runtime, SamParams

if TYPE_CHECKING:
    import torch

    from sesam.sam.segmenter import Segmenter


@dataclass(frozen=True)
class Model:
    """load(weights, device, sam, runtime) loads it. embedding_bytes: of one image, on disk.

    url: of its published weights, or their path in this package; None if there are none to download, either because
    the model has no weights or, with `needs_checkpoint`, because `sam.checkpoint` must name them. sha256: of the
    published weights.
    """

    load: Callable[[Path | None, torch.device, SamParams, Runtime | None], Segmenter]
    embedding_bytes: int
    url: str | Path | None = None
    sha256: str | None = None
    needs_checkpoint: bool = False


def _load_sam(
    name: str, weights: Path | None, device: torch.device, sam: SamParams, runtime: Runtime | None
) -> Segmenter:
    from segment_anything import sam_model_registry

    from sesam.sam.batched_sam import load_sam
    from sesam.sam.bundled import build_bundled_sam

    assert weights is not None  # its entry has a url
    build = build_bundled_sam if name == "bundled" else sam_model_registry[name]
    return load_sam(build, weights, device, sam.precision, runtime)


def _load_transformers(
    family: str, weights: Path | None, device: torch.device, sam: SamParams, runtime: Runtime | None
) -> Segmenter:
    from sesam.sam.huggingface import load_family

    assert weights is not None  # its entry needs a checkpoint
    return load_family(family, weights, device, sam, runtime)


def _load_superpixels(weights: Path | None, device: torch.device, sam: SamParams, runtime: Runtime | None) -> Segmenter:
    from sesam.sam.superpixels import Superpixels

    return Superpixels()


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
MODELS = {  # embeddings are float16, 2 bytes per value
    "bundled": Model(
        partial(_load_sam, "bundled"),
        2 * 128 * 40**2,
        Path(__file__).with_name("bundled_sam.pth"),
        "8466ca2f08954706318568023779cc8d49665eb9a629cf755937dc0d3105ca1b",
    ),
    **{
        name: Model(partial(_load_sam, name), 2 * 256 * 64**2, f"{_META}sam_{name}_{version}.pth", digest)
        for name, version, digest in (
            ("vit_b", "01ec64", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
            ("vit_l", "0b3195", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
            ("vit_h", "4b8939", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
        )
    },
    **{
        name: Model(partial(_load_transformers, family), 2 * values, needs_checkpoint=True)
        for name, family, values in (
            ("sam2", "sam2", 32 * 256**2 + 64 * 128**2 + 256 * 64**2),
            ("sam3_tracker", "sam3_tracker", 32 * 288**2 + 64 * 144**2 + 256 * 72**2),
            ("sam_hq_b", "sam_hq", (256 + 768) * 64**2),
            ("sam_hq_l", "sam_hq", (256 + 1024) * 64**2),
            ("sam_hq_h", "sam_hq", (256 + 1280) * 64**2),
        )
    },
    "superpixels": Model(_load_superpixels, 2 * 3 * 256**2),  # not a SAM: the baseline without training
}


def get_model(name: str) -> Model:
    """The entry of MODELS; SesamError for an unknown name."""
    if name not in MODELS:
        raise SesamError(f"params.yaml: sam.model is {name!r}; known are {', '.join(MODELS)}.")
    return MODELS[name]
