"""Losses of the bundled SAM's training, and the IoU that its quality head learns to predict."""

import torch
import torch.nn.functional as F


def region_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus Dice of logits (..., H, W) for targets in [0, 1] that broadcast to it; (...), one per mask."""
    target = target.expand_as(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-2, -1))
    p = logits.sigmoid()
    # 1 above and below: a small region's Dice stays finite and smooth
    dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return 2 * cross_entropy + dice  # twice: a mean over many easy pixels, it is the smaller term


def mask_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU of logits (..., H, W) > 0 with target > 0.5, which broadcasts to it; (...), one per mask."""
    mask, target = logits > 0, (target > 0.5).expand_as(logits)
    return (mask & target).sum((-2, -1)) / (mask | target).sum((-2, -1)).clamp(min=1)


def best_linear_masks(upscaled: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits (B * P, 1, h, w) of the best linear read-out of each target from the up-sampled image.

    upscaled: (B, c, h, w). target: (B * P, 1, h, w) in [0, 1]. Ridge regression to +-4, sure but
    not saturated as logits, with `pixel_weights`: what the hyper-networks should find. Its loss
    trains the image encoder even before they do.
    """
    images, channels = upscaled.shape[:2]
    pixels = upscaled.flatten(2).transpose(1, 2)  # (B, n, c)
    target = target.reshape(images, -1, pixels.shape[1])  # (B, P, n)
    weights = pixel_weights(target)
    squares = (pixels[..., None] * pixels[..., None, :]).flatten(2)  # (B, n, c * c)
    gram = (weights @ squares).unflatten(-1, (channels, channels))
    # a ridge in proportion to the channels' size, so that the system is never singular
    ridge = 0.003 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(channels)
    solution = torch.linalg.solve(gram + ridge, ((8 * target - 4) * weights @ pixels)[..., None])[..., 0]
    return (solution @ pixels.transpose(1, 2)).reshape(-1, 1, *upscaled.shape[2:])


def pixel_weights(target: torch.Tensor) -> torch.Tensor:
    """Weights (..., n) of pixels with targets (..., n) in [0, 1], that sum to 1.

    The inside has the square root of its share of the area: small regions count more than their
    area, but not so much that their surroundings are lost.
    """
    inside, outside = (x.sum(-1, keepdim=True).clamp(min=1) for x in (target, 1 - target))
    share = (inside / target.shape[-1]).sqrt()
    return share * target / inside + (1 - share) * (1 - target) / outside
