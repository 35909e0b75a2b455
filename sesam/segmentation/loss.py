"""Method, step 6: one loss over three sources of labels, and fine labels as a fourth."""

import torch
from mmengine.dist import all_reduce, get_world_size
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.nn.functional import cross_entropy

from sesam.artifacts.sources import CONFIDENT, FINE, SAM, SOURCE_NAMES, WEAK
from sesam.labels import IGNORE_INDEX

# pixels of other values add nothing to the loss
SOURCES = {SOURCE_NAMES[source]: source for source in (WEAK, SAM, CONFIDENT, FINE)}


def three_source_loss(
    logits: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ over sources s of λ_s · Σ cross-entropy over the n_s pixels of s / max(n_s, n_weak).

    Each source counts by its mean, but a pixel of SAM or of a prediction never counts more than a weakly labeled one:
    beside coarse polygons, SAM's pixels are few, and mostly edges. n_weak is 0 for fine labels.

    logits (B, K, H, W) float; labels (B, H, W) integer class ids, 255 = unlabeled; sources (B, H, W) integer;
    weights (4,) float, λ in the order of SOURCES. Returns the loss () and the mean of each source (4,), 0 without
    labeled pixels. In a distributed training each process has its share of the batch: the mean over the processes is
    the loss of the whole batch, and that of the gradients its gradient.
    """
    entropy = cross_entropy(logits.float(), labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
    masks = [(sources == source) & (labels != IGNORE_INDEX) for source in SOURCES.values()]
    sums, pixels = torch.stack([(entropy * mask).sum() for mask in masks]), torch.stack([mask.sum() for mask in masks])
    all_reduce(pixels)
    means = sums * get_world_size() / pixels.clamp(min=1)
    least = pixels[0] * pixels.new_tensor([source != FINE for source in SOURCES.values()])  # pixels[0]: weakly labeled
    ratio = pixels / torch.maximum(pixels, least).clamp(min=1)
    return (weights * ratio * means).sum(), means


@MODELS.register_module()
class ThreeSourceSegmentor(EncoderDecoder):
    """mmseg's EncoderDecoder trained with the three-source loss, λ from `train_cfg.source_weights`.

    `gt_sem_seg` of a sample is (2, H, W) uint8: class ids, sources. All heads have the same loss, each with the
    weight in the network's config.
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
        # mmengine minimizes the sum of the entries with "loss" in their name; the main head's means are only logged
        return losses | dict(zip(SOURCES, means.detach(), strict=True))
