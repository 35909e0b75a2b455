"""Method, step 6: one loss over three sources of labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS

from stages.common.labels import UNLABELLED
from stages.common.sources import CONFIDENT, SAM, WEAK

SOURCES = {"weak": WEAK, "sam": SAM, "confident": CONFIDENT}  # pixels of any other value add nothing to the loss


def source_losses(logits: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the pixels of each source.

    logits (B, K, H, W) float; labels (B, H, W) integer class ids, 255 = unlabelled; sources (B, H, W)
    integer. Returns (3,) float in the order of SOURCES, 0 for a source without labelled pixels.
    """
    entropy = F.cross_entropy(logits, labels.long(), ignore_index=UNLABELLED, reduction="none")
    labelled = labels != UNLABELLED
    means = []
    for source in SOURCES.values():
        chosen = (sources == source) & labelled
        means.append((entropy * chosen).sum() / chosen.sum().clamp(min=1))
    return torch.stack(means)


def three_source_loss(
    logits: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Σ over sources s of λ_s · mean cross-entropy over the pixels of s; weights (3,) are λ in the order of SOURCES."""
    return (weights * source_losses(logits, labels, sources)).sum()


@MODELS.register_module()
class SourceSegmentor(EncoderDecoder):
    """mmseg's EncoderDecoder trained with the three-source loss, λ from `train_cfg.source_weights`.

    `gt_sem_seg` of a sample is (2, H, W) uint8: class ids, sources. The auxiliary head has the same loss
    at the published weight of 0.4.
    """

    def loss(self, inputs: torch.Tensor, data_samples: list) -> dict[str, torch.Tensor]:
        labels, sources = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).unbind(1)
        weights = torch.tensor(self.train_cfg["source_weights"], device=inputs.device)
        features = self.extract_feat(inputs)
        means = {}
        for name, head in (("main", self.decode_head), ("auxiliary", self.auxiliary_head)):
            logits = resize(head(features), labels.shape[1:], mode="bilinear", align_corners=head.align_corners)
            means[name] = source_losses(logits, labels, sources)
        # mmengine descends on the sum of the entries with "loss" in their name; the others are only logged
        return {
            "loss_main": (weights * means["main"]).sum(),
            "loss_auxiliary": 0.4 * (weights * means["auxiliary"]).sum(),
            **dict(zip(SOURCES, means["main"].detach(), strict=True)),
        }
