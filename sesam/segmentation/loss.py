"""Method, step 6: one loss over three sources of labels, and fine labels as a fourth."""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from mmengine.dist import all_reduce, get_world_size
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn.functional import cross_entropy

from sesam.artifacts.sources import CONFIDENT, FINE, SAM, SOURCE_NAMES, WEAK
from sesam.labels import IGNORE_INDEX

# pixels of other values add nothing to the loss
SOURCES = {SOURCE_NAMES[source]: source for source in (WEAK, SAM, CONFIDENT, FINE)}


def count_pixels(labels: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """The labeled pixels of each of SOURCES in a batch, over all processes: (4,) int64. Both (B, H, W) integer."""
    pixels = torch.stack([((sources == source) & (labels != IGNORE_INDEX)).sum() for source in SOURCES.values()])
    all_reduce(pixels)
    return pixels


def three_source_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    sources: torch.Tensor,
    weights: torch.Tensor,
    pixels: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ over sources s of λ_s · Σ cross-entropy over the pixels of s / max(n_s, n_weak).

    Each source counts by its mean, but a pixel of another source never counts more than a weakly labeled one: beside
    coarse polygons, SAM's pixels are few, and mostly edges. A fine mask is what a SAM that never errs would add, so
    both share one mean: for each, n counts the pixels of both whose weight is not 0.

    logits (B, K, H, W) float; labels (B, H, W) integer class ids, 255 = unlabeled; sources (B, H, W) integer;
    weights (4,) float, λ in the order of SOURCES; pixels: `count_pixels` of the batch, if this is a part of it. Returns
    the loss () and the mean of each source (4,), 0 without labeled pixels. In a distributed training each process has
    its share of the batch: the mean over the processes is the loss of the whole batch, and that of the gradients its
    gradient. The sum over parts is the same.
    """
    entropy = cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    masks = [(sources == source) & (labels != IGNORE_INDEX) for source in SOURCES.values()]
    sums = torch.stack([(entropy * mask).sum() for mask in masks])
    pixels = count_pixels(labels, sources) if pixels is None else pixels
    means = sums * get_world_size() / pixels.clamp(min=1)
    dense = pixels.new_tensor([source in (SAM, FINE) for source in SOURCES.values()]).bool()
    together = torch.where(dense, (pixels * (dense & (weights > 0))).sum(), pixels)
    ratio = pixels / torch.maximum(together, pixels[0]).clamp(min=1)  # pixels[0]: weakly labeled
    return (weights * ratio * means).sum(), means


def stack_labels(data_samples: Sequence[SegDataSample]) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels and the sources of a batch, both (B, H, W)."""
    labels, sources = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).unbind(1)
    return labels, sources


@MODELS.register_module()
class ThreeSourceEncoderDecoder(EncoderDecoder):
    """mmseg's EncoderDecoder trained with the three-source loss, λ from `train_cfg.source_weights`.

    `gt_sem_seg` of a sample is (2, H, W) uint8: class ids, sources. All heads have the same loss, each with the
    weight in the network's config.
    """

    batch_pixels: torch.Tensor | None = None  # of a whole batch, while its parts are computed

    def train(self, mode: bool = True) -> Self:
        """A backbone that is not trained also keeps the statistics of its normalization."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def loss(self, inputs: torch.Tensor, data_samples: list[SegDataSample]) -> dict[str, torch.Tensor]:
        labels, sources = stack_labels(data_samples)
        pixels = count_pixels(labels, sources) if self.batch_pixels is None else self.batch_pixels
        weights = torch.tensor(self.train_cfg["source_weights"], device=inputs.device)
        losses = {}
        for name, head, output in self._outputs(self.extract_feat(inputs)):
            for number, (logits, head_weight) in enumerate(_weighted_logits(head, output)):
                logits = resize(logits, labels.shape[1:], mode="bilinear", align_corners=head.align_corners)
                loss, means = three_source_loss(logits, labels, sources, weights, pixels)
                losses[f"loss_{name}{number or ''}"] = head_weight * loss
        # mmengine minimizes the sum of the entries with "loss" in their name; the last head's means are only logged
        means = means.detach().masked_fill(pixels == 0, torch.nan)
        return losses | dict(zip(SOURCES, means, strict=True))

    def _outputs(self, features: Sequence[torch.Tensor]) -> Iterator[tuple[str, BaseDecodeHead, Any]]:
        """Each head with its name and its output; the one that predicts is the last."""
        if self.with_auxiliary_head:
            several = isinstance(self.auxiliary_head, nn.ModuleList)
            for number, head in enumerate(self.auxiliary_head if several else [self.auxiliary_head]):
                yield f"auxiliary{number or ''}", head, head(features)
        yield from self._main_outputs(features)

    def _main_outputs(self, features: Sequence[torch.Tensor]) -> Iterator[tuple[str, BaseDecodeHead, Any]]:
        yield "main", self.decode_head, self.decode_head(features)


def _weighted_logits(head: BaseDecodeHead, output: Any) -> Iterator[tuple[torch.Tensor, float]]:
    """A head's logits of the classes and their weights in the loss: of several, each of its losses weighs one.

    What else a head returns, as PIDNet's edges and EncNet's classes of the image, is not trained.
    """
    outputs = output if isinstance(output, list | tuple) else [output]
    loss: Any = getattr(head, "kernel_generate_head", head).loss_decode  # K-Net's head has none of its own
    losses: Sequence[Any] = [*loss] if isinstance(loss, nn.ModuleList) else [loss]
    for number, logits in enumerate(x for x in outputs if x.ndim == 4 and x.shape[1] == head.out_channels):
        yield logits, losses[min(number, len(losses) - 1)].loss_weight


@MODELS.register_module()
class ThreeSourceCascadeEncoderDecoder(ThreeSourceEncoderDecoder, CascadeEncoderDecoder):
    """mmseg's CascadeEncoderDecoder, each of whose heads refines the output of the one before."""

    def _main_outputs(self, features: Sequence[torch.Tensor]) -> Iterator[tuple[str, BaseDecodeHead, Any]]:
        output: Any = None
        for number, head in enumerate(self.decode_head):
            output = head(features, output) if number else head(features)
            yield f"main{number}", head, output
