"""The embedded SAM: segment-anything's prompt encoder and mask decoder around a compact encoder.

Small enough for a CPU (256 x 256 input, stride 8, 128 channels), trained on drawn scenes. models/embedded_sam.md is
its model card.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import nn

IMAGE_SIZE = 256  # pixels, longest side
STRIDE = 8
WIDTH = 128


def build_embedded_sam() -> Sam:
    """The embedded SAM with fresh weights, in train mode."""
    grid = IMAGE_SIZE // STRIDE
    sam = Sam(
        image_encoder=CompactEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2 * WIDTH, num_heads=2),
            transformer_dim=WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=WIDTH,
        ),
    )
    return sam


class CompactEncoder(nn.Module):
    """A residual network: (B, 3, 256, 256) float, normalised, to (B, 128, 32, 32) float."""

    img_size = IMAGE_SIZE  # read by Sam.preprocess and SamPredictor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(5, 32, stride=2),
            _convolution(32, 64, stride=2),
            _Block(64, 1),
            _Block(64, 1),
            _convolution(64, WIDTH, stride=2),
            *(_Block(WIDTH, dilation) for dilation in (1, 2, 4, 8, 1, 2, 4, 8)),
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),  # as SAM's own encoder ends
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # two channels of coordinates: what a ViT has as position embeddings
        axis = torch.linspace(-1, 1, IMAGE_SIZE, device=images.device, dtype=images.dtype)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy")).expand(len(images), -1, -1, -1)
        return self.layers(torch.cat([images, grid], dim=1))


class _Block(nn.Module):
    """A residual bottleneck."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(width, width // 2, kernel=1),
            _convolution(width // 2, width // 2, dilation=dilation),
            nn.Conv2d(width // 2, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.layers(x))


def _convolution(inputs: int, outputs: int, stride: int = 1, dilation: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
