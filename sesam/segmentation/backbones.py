"""The network's backbone: mmsegmentation's ResNets or any model of timm, and its pretrained weights."""

import difflib
import importlib.util
import os
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_deprecated_model_names, get_external_models, get_torchvision_models
from torch import Tensor, nn

from sesam.artifacts.archives import check_weights
from sesam.artifacts.atomic_io import find_corruption, sha256
from sesam.artifacts.downloads import fetch
from sesam.errors import SesamError
from sesam.params import RESNETS, Architecture

PACKAGE = "package:"  # a prefix of network.pretrained: weights in an installed package
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin")
MODEL_URLS = {"open-mmlab": get_external_models, "torchvision": get_torchvision_models}  # by scheme
HINT = "network.pretrained may also be the path of a local file, or null to start from random weights."


def backbone_spec(network: Architecture) -> tuple[dict[str, Any], list[int], list[float], list[float]]:
    """mmseg's config of the backbone, its features' channels from stride 4 on, mean and std of RGB input in 0 to 255.

    SesamError if it needs timm, which is missing or has no such model.
    """
    if network.backbone not in RESNETS:
        return _timm(network)
    assert network.base_channels is not None  # by the schema of the params
    stride_8, depth, width = network.output_stride == 8, RESNETS[network.backbone], network.base_channels
    config = {"type": "ResNetV1c", "depth": depth, "base_channels": width, "stem_channels": width, "num_stages": 4}
    dilations, strides = ([1, 1, 2, 4], [1, 2, 1, 1]) if stride_8 else ([1, 1, 1, 2], [1, 2, 2, 1])
    config |= {"out_indices": [0, 1, 2, 3], "dilations": dilations, "strides": strides}
    config |= {"norm_cfg": {"type": "BN", "requires_grad": True}, "norm_eval": False}
    config |= {"style": "pytorch", "contract_dilation": True}
    last = width * (8 if depth < 50 else 32)
    return config, [last // 8, last // 4, last // 2, last], [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def _timm(network: Architecture) -> tuple[dict[str, Any], list[int], list[float], list[float]]:
    """A model of timm, which reports its features' channels and strides and how its input is normalized."""
    try:
        import timm
    except ImportError:
        raise SesamError(
            f"network.backbone {network.backbone} is not one of {', '.join(RESNETS)}; for timm's models install timm: "
            "pip install -c constraints.txt -e '.[timm]'"
        ) from None
    if not timm.is_model(network.backbone):
        similar = difflib.get_close_matches(network.backbone, [*RESNETS, *timm.list_models()], 3)
        hint = f"Is it {' or '.join(similar)}?" if similar else "timm.list_models() lists timm's."
        raise SesamError(f"network.backbone: neither mmsegmentation nor timm has a {network.backbone}. {hint}")
    options: dict[str, Any] = {"features_only": True, "pretrained": False}
    try:
        with torch.device("meta"):  # without memory: a crafted network.json could ask for any amount
            info = timm.create_model(network.backbone, **options).feature_info
            options["out_indices"] = [k for k, stride in enumerate(info.reduction()) if stride >= 4]
            options["output_stride"] = network.output_stride
            features = timm.create_model(network.backbone, **options).feature_info
    except Exception as problem:  # each of timm's models raises its own
        raise SesamError(
            f"network.backbone {network.backbone} has no features of output_stride {network.output_stride} "
            f"({problem}). Choose a convolutional model."
        ) from None
    if features.reduction()[0] != 4 or len(features.channels()) < 3:
        raise SesamError(
            f"network.backbone {network.backbone} has features of strides {info.reduction()}; DeepLabV3+ needs one of "
            "stride 4 and two coarser ones. Choose a convolutional model."
        )
    pretrained = timm.get_pretrained_cfg(network.backbone)
    mean, std = ([255 * value for value in values] for values in (pretrained.mean, pretrained.std))
    return {"type": "TIMMBackbone", "model_name": network.backbone, **options}, features.channels(), mean, std


def load_pretrained(backbone: nn.Module, source: str, expected_sha256: str | None = None) -> None:
    """Fill the backbone from a file, an installed package of weights, or an address.

    source: a path, package:NAME, open-mmlab://, torchvision:// or https://. Tensors are matched by name; where no name
    matches, as in weights of another library, by order and shape. expected_sha256: of the file. SesamError if the
    weights cannot be loaded, have another digest or do not fit: mmengine itself would train on from random weights.
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
    state, module = _load_state(source), getattr(backbone, "timm_model", backbone)
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


def _download(source: str, expected_sha256: str | None) -> Path:
    """The file at an address, downloaded once per machine; SesamError if that fails, or if nothing shows it is whole.

    It is whole if its SHA-256 is expected_sha256 or the one in its name, as of torch.hub's files (NAME-1a2b3c4d.pth),
    or if it is a ZIP archive, as newer files of torch.save, and the checksums in it are right.
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
    if damage := f"its SHA-256 should begin with {named[1]}" if named else find_corruption(path):
        path.unlink()
        raise SesamError(
            f"network.pretrained: {source} cannot be verified ({damage}): perhaps it is half a file. Run again, or, if "
            f"its publisher confirms that its SHA-256 is {digest}, set network.sha256 to it. {HINT}"
        )
    return path


def _url(source: str) -> str:
    """The http address of a model of mmengine's or torchvision's tables; SesamError for an unknown one."""
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
