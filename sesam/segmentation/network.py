"""The network of mmsegmentation's heads on a backbone, in any width: building, saving, loading, prediction.

A trained network is a folder: network.json, its architecture as in params.yaml, and model.pth, its weights. Neither
names a type to build: a pulled file is input, and `network_config` alone decides what is built, with network.config
from the installed or committed config of that name and digest. mmsegmentation.json, or .py, is for mmsegmentation's own
`init_model`; nothing here reads it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from io import BytesIO
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Self

import cv2
import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_world_size
from mmseg.models.backbones import TIMMBackbone
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from pydantic import Field, ValidationError, model_validator
from torch import nn
from torch.nn.functional import conv2d, pad

from sesam.artifacts.archives import check_weights
from sesam.artifacts.atomic_io import atomic_path, find_corruption, read_bytes, read_json, write_json, write_text
from sesam.artifacts.image_io import Palette
from sesam.errors import SesamError, describe_validation_error, limit_reached
from sesam.labels import IGNORE_INDEX
from sesam.params import Architecture, Byte, Dtype, EvaluationParams, Group
from sesam.segmentation.backbones import PYRAMID_HEADS, Backbone, backbone_spec, find_timm_model
from sesam.segmentation.zoo import build, build_without_memory, read_config, zoo_config

NORM = {"type": "BN", "requires_grad": True}
ARCHITECTURE_FILE, WEIGHTS_FILE, CONFIG_FILE = "network.json", "model.pth", "mmsegmentation.json"
_GENERATOR = Lock()  # for PyTorch's generator, which all threads share
WHOLE = EvaluationParams()  # images as they are


class SavedNetwork(Group):
    """What network.json holds."""

    network: Architecture
    classes: Annotated[list[str], Field(min_length=2, max_length=255)]
    palette: list[Annotated[list[Byte], Field(min_length=3, max_length=3)]]

    @model_validator(mode="after")
    def _a_digest_and_colors(self) -> Self:
        if self.network.config is not None and self.network.config_sha256 is None:
            raise ValueError(f"config {self.network.config} has no config_sha256")
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} colors for {len(self.classes)} classes")
        return self


def network_config(network: Architecture, num_classes: int) -> dict[str, Any]:
    """mmseg's config of the network; SesamError if there is no such backbone.

    Backbone resnet101, base_channels 64, head_channels 512, output_stride 8 is deeplabv3plus_r101-d8 of
    mmsegmentation's model zoo, with plain batch normalization (on several GPUs `convert_sync_batchnorm` changes it).
    """
    if network.config is not None:
        return zoo_config(network, num_classes)
    backbone = backbone_spec(network)
    channels, loss_weight = backbone.channels, network.aux_loss_weight
    preprocessor = {"type": "mmseg.SegDataPreProcessor", "mean": backbone.mean, "std": backbone.std, "bgr_to_rgb": True}
    preprocessor |= {"pad_val": 0, "seg_pad_val": IGNORE_INDEX}
    if backbone.size_divisor is not None:
        preprocessor["test_cfg"] = {"size_divisor": backbone.size_divisor}
    fcn = {"type": "FCNHead", "in_channels": channels[-2], "in_index": len(channels) - 2, "channels": channels[-1] // 8}
    fcn |= {"num_convs": 1, "concat_input": False}
    needs_neck = len(set(backbone.strides)) == 1 and network.head != "linear"
    neck = {"neck": {"type": "Feature2Pyramid", "embed_dim": channels[0], "norm_cfg": NORM}} if needs_neck else {}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": preprocessor,
        "backbone": backbone.config,
        **neck,
        "decode_head": _decode_head(network, backbone) | _head_options(num_classes, 1.0),
        "auxiliary_head": fcn | _head_options(num_classes, loss_weight) if loss_weight else None,
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def _decode_head(network: Architecture, backbone: Backbone) -> dict[str, Any]:
    """mmseg's config of network.head."""
    channels, last = backbone.channels, len(backbone.channels) - 1
    if network.head in PYRAMID_HEADS:
        kind = {"upernet": "UPerHead", "segformer": "SegformerHead"}[network.head]
        indices = list(range(len(channels)))
        return {"type": kind, "in_channels": channels, "in_index": indices, "channels": network.head_channels}
    if network.head == "linear":
        fcn = {"type": "FCNHead", "in_channels": channels[-1], "in_index": last, "channels": channels[-1]}
        return fcn | {"num_convs": 0, "concat_input": False}
    stride_8 = network.output_stride == 8 and backbone.size_divisor is None
    aspp = {"type": "DepthwiseSeparableASPPHead", "in_channels": channels[-1], "in_index": last}
    aspp |= {"channels": network.head_channels, "dilations": [1, 12, 24, 36] if stride_8 else [1, 6, 12, 18]}
    return aspp | {"c1_in_channels": channels[0], "c1_channels": max(1, 48 * (network.base_channels or 64) // 64)}


def training_preprocessor(config: Mapping[str, Any], crop_size: Sequence[int]) -> dict[str, Any]:
    """The preprocessor of a network's config that pads to crops of (height, width), up to whole patches of a ViT."""
    divisor = config["data_preprocessor"].get("test_cfg", {}).get("size_divisor", 1)
    return config["data_preprocessor"] | {"size": [-(-side // divisor) * divisor for side in crop_size]}


def _head_options(num_classes: int, loss_weight: float) -> dict[str, Any]:
    loss = {"type": "CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": loss_weight}
    options = {"loss_decode": loss, "num_classes": num_classes, "out_channels": num_classes, "dropout_ratio": 0.1}
    return options | {"norm_cfg": NORM, "align_corners": False}


class PhasedDepthwise(nn.Module):
    """A dilated depthwise convolution, with its weights, as one that is not dilated.

    Every d-th row and column of the input, for a dilation of d, is an image of its own; there are d². oneDNN has no
    fast gradients for dilated depthwise convolutions on a CPU: they took a third of EfficientNet-Lite0's training step.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.dilation = conv.weight, conv.dilation[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (batch, channels, height, width), d, margin = x.shape, self.dilation, self.weight.shape[-1] // 2
        if d >= max(height, width):  # all taps but the center see only padding
            return x * self.weight[:, 0, margin, margin, None, None]
        if 3 * d > min(height, width):  # images of a pixel or two are slower
            return conv2d(x, self.weight, padding=margin * d, dilation=d, groups=channels)
        rows, columns = -(-height // d), -(-width // d)
        padded = pad(x, [0, columns * d - width, 0, rows * d - height]).permute(0, 2, 3, 1)
        phases = padded.reshape(batch, rows, d, columns, d, channels).permute(2, 4, 0, 1, 3, 5)
        phases = phases.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)  # channels last: the fastest there
        phases = conv2d(phases, self.weight, padding=margin, groups=channels).permute(0, 2, 3, 1)
        together = phases.reshape(d, d, batch, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
        whole = together.reshape(batch, rows * d, columns * d, channels)
        return whole[:, :height, :width].permute(0, 3, 1, 2)


def find_dilated_depthwise(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The dilated depthwise convolutions of a model that keep the size and have no bias, by name."""
    return {
        name: conv
        for name, conv in model.named_modules()
        if type(conv) is nn.Conv2d
        and conv.padding_mode == "zeros"
        and conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.dilation[0] == conv.dilation[1] > 1
        and conv.stride == (1, 1)
        and conv.bias is None
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.padding == (conv.dilation[0] * (conv.kernel_size[0] // 2),) * 2
        and conv.kernel_size[0] % 2
    }


def convert_sync_batchnorm(model: EncoderDecoder) -> None:
    """Have every batch normalization take its statistics over all processes, in training."""
    for name, child in model.named_children():
        if isinstance(child, TIMMBackbone):  # its normalizations contain activations
            from timm.layers import convert_sync_batchnorm as convert_timm

            child.timm_model = convert_timm(child.timm_model)
        else:
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def _suits_channels_last(model: nn.Module) -> bool:
    """Whether oneDNN's gradients are right in that format: those of strided 1x1 convolutions with fewer channels than
    its vectors hold overwrite other memory (uxlfoundation/oneDNN #6035).
    """
    strided = (module for module in model.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1)
    return not any(conv.kernel_size == (1, 1) and conv.in_channels < 16 for conv in strided)


def optimize_for(device: torch.device, model: EncoderDecoder, dtype: Dtype) -> None:
    """For training: change the memory format and the layers to those that the device needs or is fastest with."""
    is_faster = _suits_channels_last(model) if device.type == "cpu" else dtype != "float32"
    if is_faster:
        model.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        for name, conv in find_dilated_depthwise(model).items():
            model.set_submodule(name, PhasedDepthwise(conv))
    elif get_world_size() > 1:  # PyTorch's is for GPUs; on CPUs each process normalizes by its own samples
        convert_sync_batchnorm(model)


def checkpoint_activations(model: EncoderDecoder) -> None:
    """Have the backbone recompute its activations instead of keeping them; SesamError if it offers no such thing."""
    blocks = [module for module in model.backbone.modules() if hasattr(module, "with_cp")]
    for block in blocks:
        block.with_cp = True
    enable = getattr(find_timm_model(model.backbone), "set_grad_checkpointing", None)
    if enable is not None:
        enable(True)
    elif not blocks:
        raise SesamError(
            f"schedule.checkpoint_activations: the backbone {type(model.backbone).__name__} cannot recompute its "
            "activations. Set it to false; schedule.accumulate lowers memory too."
        )


def save_network(
    folder: Path, network: Architecture, classes: Sequence[str], palette: Palette, model: nn.Module
) -> None:
    """Write a trained network's architecture, weights and classes, also in mmsegmentation's form."""
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    if network.config is not None:  # ANN has one tensor by two names, and `load_network` wants the bytes of both
        state = {key: value.clone() for key, value in state.items()}
    dataset_meta = {"classes": list(classes), "palette": [list(color) for color in palette]}
    content = BytesIO()  # torch.save to a path would put its name into the file and miss a full disk
    torch.save({"state_dict": state, "meta": {"dataset_meta": dataset_meta}}, content)
    with atomic_path(folder / WEIGHTS_FILE) as unfinished:
        unfinished.write_bytes(content.getvalue())
    if network.config is None:
        fields = Architecture.model_fields.keys() - {"config", "config_sha256"}
        architecture = network.model_dump(include=fields)
    else:
        architecture = {"config": network.config, "config_sha256": read_config(network)[2]}
    write_json(folder / ARCHITECTURE_FILE, {"network": architecture, **dataset_meta})
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    config: dict[str, Any] = {
        "default_scope": "mmseg",
        "model": network_config(network, len(classes)),
        "test_pipeline": pipeline,
    }
    if network.config is None or _builds_from_json(config["model"]):
        write_json(folder / CONFIG_FILE, config)
    else:
        write_text(folder / Path(CONFIG_FILE).with_suffix(".py"), "".join(f"{k} = {v!r}\n" for k, v in config.items()))


def _builds_from_json(model: dict[str, Any]) -> bool:
    """Whether mmseg can build a model whose tuples are lists: a few of its networks ask for tuples."""
    try:
        build_without_memory(json.loads(json.dumps(model)))
    except Exception:  # each of its types raises its own
        return False
    return True


def load_network(folder: Path, device: torch.device, classes: Sequence[str] | None = None) -> EncoderDecoder:
    """The trained network of a folder, ready to predict; SesamError if it is missing, damaged or from elsewhere.

    classes: SesamError if the network has others. Its class names and colors are in `dataset_meta`, as mmsegmentation
    has them.
    """
    try:
        saved = SavedNetwork.model_validate(read_json(folder / ARCHITECTURE_FILE))
    except ValidationError as problem:
        reason = describe_validation_error(problem)[0]
        raise SesamError(
            f"{folder / ARCHITECTURE_FILE} does not describe a network ({reason}). Train it again."
        ) from None
    if classes is not None and list(classes) != saved.classes:
        raise SesamError(
            f"{folder} is a network of the classes {', '.join(saved.classes)}; those of the data set are "
            f"{', '.join(classes)}. Take one that was trained on it."
        )
    content, config = BytesIO(read_bytes(folder / WEIGHTS_FILE)), network_config(saved.network, len(saved.classes))
    try:
        if damage := find_corruption(content):
            raise ValueError(damage)
        check_weights(folder / WEIGHTS_FILE)
        content.seek(0)
        weights = torch.load(content, map_location="cpu", weights_only=True)["state_dict"]
        expected = {key: value.shape for key, value in build_without_memory(config).state_dict().items()}
        if expected != {key: value.shape for key, value in weights.items()}:
            raise ValueError(f"{WEIGHTS_FILE} is of another network than {ARCHITECTURE_FILE} describes")
        if any(not _is_plain(value) for value in weights.values()) or _bytes_of(weights) > content.getbuffer().nbytes:
            raise ValueError(f"{WEIGHTS_FILE} has tensors that are larger than the file")
        model = build(config)
        model.load_state_dict(weights)
    except Exception as problem:  # of many kinds, because the file may hold anything
        if limit_reached(problem) is not None:  # the network is whole
            raise
        raise SesamError(f"{folder} holds no network that can be loaded ({problem}). Train it again.") from None
    model.dataset_meta = {"classes": saved.classes, "palette": saved.palette}
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # in which convolutions are faster on a CPU
    return model.to(device).eval()


def _is_plain(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and value.device.type == "cpu" and value.is_contiguous()


def _bytes_of(weights: Mapping[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in weights.values())


@torch.inference_mode()
def predict(
    model: EncoderDecoder, image: np.ndarray, device: torch.device, evaluation: EvaluationParams = WHOLE
) -> tuple[np.ndarray, np.ndarray]:
    """Classes and confidence of an image at its own size.

    All that scores or labels images does it here, always in float32, so that labels have the quality that was scored.

    image: (H, W, 3) uint8 RGB; evaluation: windows, mirror image and scales. Returns (H, W) uint8 class ids and (H, W)
    uint8 confidence, floor(255 * softmax maximum). SesamError if it does not fit on the GPU, or is too small for the
    network.
    """
    height, width = image.shape[:2]
    model.test_cfg = ConfigDict(evaluation.model_dump(include={"mode", "crop_size", "stride"}))
    views = list(product(evaluation.scales, (False, True)[: 1 + evaluation.flip]))
    try:
        with torch.autocast(device.type, enabled=False), _same_draws(model):
            total = reduce(torch.add, (_probabilities(model, image, device, *view) for view in views))
            confidence, classes = (total / len(views)).max(0)
        return classes.byte().cpu().numpy(), (255 * confidence).byte().cpu().numpy()
    except torch.OutOfMemoryError:
        slides = evaluation.mode == "slide"
        windows = "Lower evaluation.crop_size" if slides else "Predict in windows (evaluation.mode slide)"
        raise SesamError(
            f"The GPU has not the memory to predict an image of {width}x{height} pixels. {windows}, cut such images "
            "with `sesam tile split` (in `sesam segment`: lower --tile-size), or take another GPU."
        ) from None
    except (RuntimeError, AssertionError) as problem:  # timm asserts that patches fit
        if limit_reached(problem) is not None:
            raise
        reason = str(problem).partition("\n")[0]
        divisor = (model.data_preprocessor.test_cfg or {}).get("size_divisor", 1)
        windows = f", or an evaluation.crop_size of multiples of {divisor}" if evaluation.mode == "slide" else ""
        raise SesamError(
            f"The network cannot predict an image of {width}x{height} pixels ({reason}). "
            f"Some need larger ones{windows}."
        ) from None


@contextmanager
def _same_draws(model: EncoderDecoder) -> Iterator[None]:
    """A head that draws random values, as SegNeXt's, draws the same for each image: one thread at a time, because the
    generator is the process's.
    """
    if any(getattr(module, "rand_init", False) for module in model.modules()):
        with _GENERATOR, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    else:
        yield


def _probabilities(
    model: EncoderDecoder, image: np.ndarray, device: torch.device, scale: float, mirror: bool
) -> torch.Tensor:
    """(K, H, W) float32: the softmax for an image, predicted at another scale or mirrored, as mmseg's SegTTAModel."""
    size = [max(1, round(scale * side)) for side in image.shape[:2]]
    view = image if scale == 1 else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    bgr = torch.from_numpy(view).to(device).permute(2, 0, 1).flip([0, 2] if mirror else [0])
    inputs = model.data_preprocessor({"inputs": [bgr], "data_samples": [SegDataSample()]})["inputs"]
    shape = {"img_shape": inputs.shape[2:], "ori_shape": inputs.shape[2:]}
    logits = model.inference(inputs, [shape])[:, :, : size[0], : size[1]]
    if mirror:
        logits = logits.flip(3)
    if scale != 1:
        logits = resize(logits, image.shape[:2], mode="bilinear", align_corners=model.align_corners, warning=False)
    return logits[0].softmax(0)
