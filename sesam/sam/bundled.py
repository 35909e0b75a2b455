"""The bundled SAM: segment-anything's prompt encoder and mask decoder around EfficientNet-Lite0.

Small enough for a CPU (320 x 320 input, stride 8, 128 channels), trained with `python -m tools.bundled_sam.train` on
photographs and drawn scenes. Its model card is bundled_sam.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sesam.sam.segment_anything_parts import LayerNorm2d, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

IMAGE_SIZE = 320  # pixels, longest side
STRIDE = 8
WIDTH = 128


def build_bundled_sam() -> Sam:
    """The bundled SAM with new weights, in train mode."""
    grid = IMAGE_SIZE // STRIDE
    return Sam(
        image_encoder=PyramidEncoder(),
        prompt_encoder=PromptEncoder(WIDTH, (grid, grid), (IMAGE_SIZE, IMAGE_SIZE), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=WIDTH,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2 * WIDTH, num_heads=2),
            iou_head_hidden_dim=WIDTH,
        ),
        pixel_mean=[127.0] * 3,  # EfficientNet-Lite's
        pixel_std=[128.0] * 3,
    )


class PyramidEncoder(nn.Module):
    """(B, 3, 320, 320) float, normalized, to (B, 128, 40, 40) float: features of strides 4 to 32, resampled to 8."""

    img_size = IMAGE_SIZE  # read by Sam.preprocess and SamPredictor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        stride4, *others = EfficientNetLite0.CHANNELS
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in (4 * stride4, *others))
        self.layers = nn.Sequential(
            *(_Block(WIDTH, dilation) for dilation in (1, 2, 1)),
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),  # as in SAM's encoder
        )

    def forward(self, images: Tensor) -> Tensor:
        finest, *others = self.backbone(images)
        features = zip(self.lateral, (F.pixel_unshuffle(finest, 2), *others), strict=True)
        stride4, stride8, *laterals = [lateral(x) for lateral, x in features]
        x = stride4 + stride8
        for coarse in laterals:
            x = x + F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
        return self.layers(torch.relu(x))


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan and Le 2019; without squeeze and excitation, with ReLU6), its tensors in published order.

    (B, 3, H, W) float to features of strides 4, 8, 16 and 32 with CHANNELS channels.
    """

    CHANNELS = (24, 40, 112, 320)
    # expansion, kernel, stride, channels, blocks
    STAGES = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )

    def __init__(self) -> None:
        super().__init__()
        channels = 32
        self.stem = nn.Sequential(*_convolution(3, channels, 3, 2))
        self.stages = nn.ModuleList()
        for expansion, kernel, stride, outputs, num_blocks in self.STAGES:
            first = _InvertedResidual(channels, outputs, expansion, kernel, stride)
            others = (_InvertedResidual(outputs, outputs, expansion, kernel, 1) for _ in range(num_blocks - 1))
            self.stages.append(nn.Sequential(first, *others))
            channels = outputs

    def forward(self, images: Tensor) -> list[Tensor]:
        x, features = self.stem(images), []
        for stage, (*_, outputs, _) in zip(self.stages, self.STAGES, strict=True):
            x = stage(x)
            if outputs in self.CHANNELS:
                features.append(x)
        return features


class _InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        expand = _convolution(inputs, wide, 1) if expansion > 1 else []
        depthwise = _convolution(wide, wide, kernel, stride, groups=wide)
        *project, _ = _convolution(wide, outputs, 1)  # without an activation
        self.layers = nn.Sequential(*expand, *depthwise, *project)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """With TensorFlow's padding, as the published weights were trained: more at the far edges."""
    pad = kernel - stride
    padding = [nn.ZeroPad2d((pad // 2, pad - pad // 2) * 2)] if pad else []
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return [*padding, convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.ReLU6(inplace=True)]


def _normalized(inputs: int, outputs: int, size: int, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2 * dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Block(nn.Module):
    """A residual bottleneck."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _normalized(width, width // 2, 1),
            _normalized(width // 2, width // 2, 3, dilation),
            nn.Conv2d(width // 2, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))
