"""Method, step 6: one loss over three sources of labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from sesam.artifacts.sources import CONFIDENT, SAM, WEAK
from sesam.labels import IGNORE_INDEX

SOURCES = {"weak": WEAK, "sam": SAM, "confident": CONFIDENT}  # pixels of any other value add nothing to the loss


def three_source_loss(
    logits: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ over sources s of λ_s · Σ cross-entropy over the pixels of s / max(number of these, of weakly labeled ones).

    So each source counts by its mean, but no pixel of SAM's or of a prediction for more than one that annotators
    labeled: beside coarse polygons, SAM's pixels are the fewer, and mostly edges.

    logits (B, K, H, W) float; labels (B, H, W) integer class ids, 255 = unlabeled; sources (B, H, W) integer;
    weights (3,) float, λ in the order of SOURCES. Returns the loss () and its three means (3,); the mean of
    a source without labeled pixels is 0. Of several processes each has its own part of the batch: what the processes
    return has as its mean the loss of the whole batch, as their gradients have.
    """
    entropy = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    chosen = [(sources == source) & (labels != IGNORE_INDEX) for source in SOURCES.values()]
    sums, pixels = torch.stack([(entropy * one).sum() for one in chosen]), torch.stack([one.sum() for one in chosen])
    all_reduce(pixels)
    means = sums * get_world_size() / pixels.clamp(min=1)
    share = pixels / torch.maximum(pixels, pixels[0]).clamp(min=1)  # pixels[0]: of annotators
    return (weights * share * means).sum(), means


@MODELS.register_module()
class SourceSegmentor(EncoderDecoder):
    """mmseg's EncoderDecoder trained with the three-source loss, λ from `train_cfg.source_weights`.

    `gt_sem_seg` of a sample is (2, H, W) uint8: class ids, sources. All heads have the same loss, each at
    the weight that the network's config gives it.
    """

    def loss(self, inputs: torch.Tensor, data_samples: list[SegDataSample]) -> dict[str, torch.Tensor]:
        labels, sources = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).unbind(1)
        weights = torch.tensor(self.train_cfg["source_weights"], device=inputs.device)
        features = self.extract_feat(inputs)
        losses = {}
        heads = {"auxiliary": self.auxiliary_head} if self.with_auxiliary_head else {}
        for name, head in (heads | {"main": self.decode_head}).items():
            logits = resize(head(features), labels.shape[1:], mode="bilinear", align_corners=head.align_corners)
            loss, means = three_source_loss(logits, labels, sources, weights)
            losses[f"loss_{name}"] = head.loss_decode.loss_weight * loss
        # mmengine descends on the sum of the entries with "loss" in their name; the main head's means are only logged
        return losses | dict(zip(SOURCES, means.detach(), strict=True))
