"""Networks of mmsegmentation's configs: which are built, trained and saved, and which are refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import sh
from dataset_factories import THREE
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.apis import init_model
from mmseg.structures import SegDataSample
from pydantic import ValidationError

from sesam.artifacts.atomic_io import read_json, write_json
from sesam.errors import SesamError
from sesam.params import Architecture, DatasetParams, NetworkParams, Params, Schedule
from sesam.segmentation.loss import ThreeSourceEncoderDecoder, three_source_loss
from sesam.segmentation.network import load_network, network_config, save_network
from sesam.segmentation.training import optimizer_config
from sesam.segmentation.zoo import build, build_without_memory, read_config
from tools.networks import try_network

CPU = torch.device("cpu")
SEGFORMER = "segformer_mit-b0_8xb2-160k_ade20k-512x512"
SWIN = "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512"
OWN = "configs/mine.py"
FCN = """
norm = dict(type="SyncBN", requires_grad=True)
loss = dict(type="OhemCrossEntropy", thres=0.9)
model = dict(
    type="EncoderDecoder",
    pretrained="open-mmlab://resnet18_v1c",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[1.0, 2.0, 3.0], std=[4, 5, 6], size=(512, 512)),
    backbone=dict(type="ERFNet", norm_cfg=norm, init_cfg={"type": "Pretrained", "checkpoint": "https://a.b/c.pth"}),
    decode_head=dict(
        type="FCNHead", in_channels=16, channels=8, num_convs=1, num_classes=19, norm_cfg=norm, loss_decode=loss
    ),
)
"""


def own_config(text: str, folder: Path = Path()) -> None:
    """A config at OWN in a repository that tracks it."""
    (folder / OWN).parent.mkdir(parents=True)
    (folder / OWN).write_text(text)
    sh("git", "init", "-q", cwd=folder)
    sh("git", "add", OWN, cwd=folder)


def digest_of(config: str) -> str:
    """The digest that a config of our own needs, as the message says it."""
    with pytest.raises(SesamError, match=r"set network\.config_sha256 to [0-9a-f]{64}\.") as caught:
        read_config(Architecture(config=config))
    return str(caught.value)[-65:-1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name",
    [SEGFORMER, "pspnet_r18b-d8_4xb2-80k_cityscapes-512x1024", "ocrnet_hr18s_4xb2-160k_cityscapes-512x1024"],
)
def test_a_family_trains_and_predicts(name: str, here: None) -> None:
    """`python -m tools.networks` does it with all families."""
    torch.manual_seed(0)
    try_network(NetworkParams(config=name, pretrained=None), Path())
    assert Path("mmsegmentation.json").exists()


def test_a_network_that_asks_for_tuples_has_a_config_in_python(here: None) -> None:
    network = Architecture(config="mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024")
    save_network(Path("trained"), network, *THREE, build(network_config(network, 3)))
    init_model("trained/mmsegmentation.py", "trained/model.pth", device="cpu")
    assert not Path("trained/mmsegmentation.json").exists()


def test_a_config_of_this_repository_trains_and_predicts(here: None) -> None:
    """UPerNet on a narrow Swin: the zoo's is too large for a test."""
    model, optimizer, _ = read_config(Architecture(config=SWIN))
    model["backbone"] |= {"embed_dims": 12, "depths": [1, 1, 1, 1]}
    model["decode_head"] |= {"in_channels": [12, 24, 48, 96], "channels": 8}
    model["auxiliary_head"] |= {"in_channels": 48, "channels": 8}
    own_config(f"model = {model!r}\noptim_wrapper = {optimizer!r}\n")
    torch.manual_seed(0)
    try_network(NetworkParams(config=OWN, config_sha256=digest_of(OWN), pretrained=None), Path("trained"))


@pytest.mark.parametrize("name", [SEGFORMER, SWIN, "setr_vit-l_mla_8xb2-160k_ade20k-512x512"])
def test_a_look_at_a_network_takes_no_memory(name: str) -> None:
    """A pulled network.json may name the largest; the transformers compute their rates of stochastic depth."""
    model = build_without_memory(network_config(Architecture(config=name), 3))
    assert all(value.is_meta for value in model.state_dict().values())


def test_what_is_ours_in_a_config(here: None) -> None:
    own_config(FCN)
    config = network_config(Architecture(config=OWN, config_sha256=digest_of(OWN)), 3)
    assert "pretrained" not in config and "init_cfg" not in config["backbone"]
    assert config["decode_head"]["norm_cfg"]["type"] == config["backbone"]["norm_cfg"]["type"] == "BN"
    assert config["decode_head"]["num_classes"] == 3
    assert config["decode_head"]["loss_decode"]["type"] == "CrossEntropyLoss"
    preprocessor = config["data_preprocessor"]
    assert (preprocessor["mean"], preprocessor["std"], preprocessor["seg_pad_val"]) == ([1.0, 2.0, 3.0], [4, 5, 6], 255)
    assert "size" not in preprocessor and config["test_cfg"] == {"mode": "whole"}


def losses_of(config: str) -> tuple[ThreeSourceEncoderDecoder, dict[str, torch.Tensor], list[torch.Tensor]]:
    """A network without dropout, its losses of a batch, and the batch: images, classes, sources."""
    trainable = {"type": "ThreeSourceEncoderDecoder", "train_cfg": {"source_weights": [1.0] * 4}}
    model = build(network_config(Architecture(config=config), 3) | trainable)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0
    batch = [torch.randn(2, 3, 64, 64), *torch.randint(0, 3, (2, 2, 64, 64))]
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.stack(maps))) for maps in zip(*batch[1:], strict=True)]
    return model, model.loss(batch[0], samples), batch


def test_all_logits_of_a_head_are_trained_with_the_weights_of_its_losses() -> None:
    """PIDNet's head gives logits, logits and edges."""
    model, losses, (images, labels, sources) = losses_of("pidnet-s_2xb6-120k_1024x1024-cityscapes")
    *logits, edges = model.decode_head(model.extract_feat(images))
    assert edges.shape[1] == 1 and {key for key in losses if "loss" in key} == {"loss_main", "loss_main1"}
    for name, small, weight in zip(("loss_main", "loss_main1"), logits, (0.4, 1.0), strict=True):
        large = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear", align_corners=True)
        expected, _ = three_source_loss(large, labels, sources, torch.ones(4))
        assert losses[name].item() == pytest.approx(weight * expected.item())


def test_all_auxiliary_heads_are_trained() -> None:
    _, losses, _ = losses_of("bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024")
    auxiliary = {"loss_auxiliary", *(f"loss_auxiliary{k}" for k in (1, 2, 3))}
    assert {key for key in losses if "loss" in key} == auxiliary | {"loss_main"}


def test_the_configs_own_optimizer() -> None:
    """SegFormer's: the head ten times as fast, normalization without decay."""
    raw = {"optimizer": "config", "lr": 6e-5}
    network, schedule = NetworkParams(config=SEGFORMER, pretrained=None), Schedule.model_validate(raw)
    model = build(network_config(network, 3))
    wrapper = build_optim_wrapper(model, optimizer_config(schedule, network) | {"type": "OptimWrapper"})
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    groups = {id(weight): group for group in wrapper.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        assert groups[id(weight)]["lr"] == pytest.approx(6e-4 if "head" in name else 6e-5)
    decays = {groups[id(model.backbone.layers[0][1][0].norm1.weight)]["weight_decay"]}
    assert decays == {0.0} and groups[id(model.decode_head.conv_seg.weight)]["weight_decay"] == 0.01
    dataset = DatasetParams(classes=list(THREE[0]))
    for wrong in ({"network": NetworkParams()}, {"schedule": schedule.model_copy(update={"backbone_lr_mult": 0.1})}):
        with pytest.raises(ValidationError, match=r"optimizer config needs network\.config, and backbone_lr_mult 1"):
            Params(**{"dataset": dataset, "network": network, "schedule": schedule} | wrong)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mask2former_r50_8xb2-90k_cityscapes-512x1024", "Mask2FormerHead does not give each pixel the classes'"),
        ("pointrend_r50_4xb2-80k_cityscapes-512x1024", "PointHead does not give each pixel"),
        ("san-vit-b16_coco-stuff164k-640x640", "its type is MultimodalEncoderDecoder, not EncoderDecoder or Cascade"),
        ("beit-base_upernet_8xb2-160k_ade20k-640x640", "BEiT takes images of one size alone"),
        ("convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512", "mmpretrain.ConvNeXt is not in the"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(name: str, reason: str) -> None:
    with pytest.raises(SesamError, match=rf"network\.config {name} .*{reason}.*Choose a network from docs/reference"):
        network_config(Architecture(config=name), 3)


def test_an_unknown_name_is_answered_with_similar_ones() -> None:
    with pytest.raises(SesamError, match=r"zoo has no segformer_mit-b0\. Is it segformer_mit-b0"):
        network_config(Architecture(config="segformer_mit-b0"), 3)
    for wrong in ("../mine.py", "/etc/mine.py", "a/../mine.py", "~/mine.py", "a//mine.py", "https://a.b/c.py", ""):
        with pytest.raises(ValidationError):
            Architecture(config=wrong)


def link_the_file() -> None:
    Path("elsewhere.py").write_text(Path(OWN).read_text())
    Path(OWN).unlink()
    Path(OWN).symlink_to(Path("elsewhere.py").absolute())


def link_the_folder() -> None:
    Path("configs").rename("elsewhere")
    Path("configs").symlink_to("elsewhere")


def write(text: str) -> Callable[[], Any]:
    return lambda: Path(OWN).write_text(text)


def pipe() -> None:
    Path(OWN).unlink()
    os.mkfifo(OWN)


CHANGES = {
    "a link": (link_the_file, "is not a file that git tracks here"),
    "a linked folder": (link_the_folder, "is not a file that git tracks here"),
    "not tracked": (lambda: sh("git", "rm", "-q", "--cached", OWN, cwd=Path()), "is not a file that git tracks here"),
    "a pipe": (pipe, "is not a regular file"),
    "removed": (lambda: Path(OWN).unlink(), "is not a config of literals"),
    "changed": (write(FCN.replace("channels=8", "channels=9")), "has the digest .* here, network.config_sha256 is"),
    "a base": (write("_base_ = ['a.py']\n"), "it has a _base_"),
    "an import": (write("import os\n"), "line 1 assigns nothing"),
    "a call": (write("model = open('ran', 'w')\n"), "malformed node"),
    "a call of another dict": (write("dict = open\nmodel = dict(file='ran', mode='w')\n"), "malformed node"),
    "an expression": (write("model = [x for x in (1, 2)]\n"), "malformed node"),
    "no Python": (write("model = (\n"), "was never closed"),
    "no model": (write("a = 1\n"), "has the digest"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_trained_network_needs_the_committed_config(change: str, here: None) -> None:
    own_config(FCN)
    network = Architecture(config=OWN, config_sha256=digest_of(OWN))
    save_network(Path("trained"), network, *THREE, build(network_config(network, 3)))
    load_network(Path("trained"), CPU)
    edit, message = CHANGES[change]
    edit()
    with pytest.raises(SesamError, match=message):
        load_network(Path("trained"), CPU)
    assert not Path("ran").exists()


def test_a_trained_network_says_its_configs_digest(here: None) -> None:
    network, path = Architecture(config="erfnet_fcn_4xb4-160k_cityscapes-512x1024"), Path("trained/network.json")
    save_network(Path("trained"), network, *THREE, build(network_config(network, 3)))
    load_network(Path("trained"), CPU)
    saved = read_json(path)
    assert saved["network"].pop("config_sha256") == read_config(network)[2]
    write_json(path, saved)
    with pytest.raises(SesamError, match=r"network\.json does not describe a network .*has no config_sha256"):
        load_network(Path("trained"), CPU)
