"""The segmentation network: three-source loss, samples, training, prediction, evaluation."""

import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock
from zipfile import ZipFile

import mmseg
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, edit_params, sh, write_params
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmseg.apis import inference_model, init_model
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import DataLoader

from sesam.artifacts import fingerprint
from sesam.artifacts.atomic_io import read_json, sha256, write_json, write_text
from sesam.artifacts.image_io import write_label
from sesam.artifacts.manifest import ImageRecord, Manifest, load_image, load_predictions
from sesam.artifacts.supervision import save_supervision
from sesam.cli.main import main
from sesam.errors import SesamError
from sesam.execution import batches
from sesam.execution.device import resolve_device
from sesam.params import Architecture, EvaluationParams, LossWeights, Params
from sesam.presets import load_preset
from sesam.segmentation import hooks, network, training
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.data import ResumableSampler, TrainingDataset, TrainingTask, collate, split
from sesam.segmentation.loss import three_source_loss
from sesam.segmentation.network import (
    PhasedDepthwise,
    checkpoint_activations,
    find_dilated_depthwise,
    load_network,
    network_config,
    predict,
    save_network,
)
from sesam.segmentation.runner import train_in_parts
from sesam.segmentation.training import train
from stages import evaluate, teacher_predictions

CLASSES, PALETTE = ("ground", "block", "sky"), ((90, 60, 30), (200, 0, 0), (80, 120, 255))
CPU = torch.device("cpu")
LABELS, SOURCES = (Path("data/pseudo_labels/r1", part) for part in ("labels", "sources"))
CHECKPOINT = Path("models/.work/student-r1/checkpoint.pth")


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """For networks this small a second thread only waits."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NETWORK = load_preset(ROOT / "presets/demo.yaml").network.model_copy(update={"base_channels": 4, "head_channels": 8})


@pytest.fixture
def params() -> Params:
    """The demo's params with a network and a training small enough for a test."""
    raw = load_preset(ROOT / "presets/demo.yaml").model_dump(mode="json")
    raw["rounds"]["r2"] = {"teacher": "r1", "fill_confident": False}
    raw["network"] = NETWORK.model_dump()
    raw["schedule"] |= {"max_iters": 20, "batch_size": 2, "crop_size": [32, 40], "scale_range": [0.7, 1.3], "lr": 0.02}
    raw["runtime"] |= {"device": "cpu", "num_workers": 1}
    return Params.model_validate(raw)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Five tiny images with labels and sources, as the stages before would leave them; cwd is theirs."""
    monkeypatch.chdir(tmp_path)
    rng, items = np.random.default_rng(0), []
    for k in range(5):
        name, height, width = f"street/{k}", 40 + k, 60 - k
        labels = np.full((height, width), 255, np.uint8)
        labels[:12], labels[30:], labels[15:25, 10 * k : 10 * k + 8] = 2, 0, 1
        sources = np.where(labels == 255, 0, rng.integers(1, 4, labels.shape)).astype(np.uint8)
        image = np.array(PALETTE, np.uint8)[np.where(labels == 255, 0, labels)] ^ rng.integers(0, 32, 3, np.uint8)
        path = tmp_path / f"raw/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        write_label(LABELS / f"{name}.png", labels, PALETTE)
        write_label(SOURCES / f"{name}.png", sources, PALETTE)
        items.append(ImageRecord(name, f"raw/{name}.png", height, width, sha256(path)))
    write_params(Path(), "demo")
    Path("data/weak").mkdir()
    write_text(Path("models/none"), "")  # a dependency of a round without a teacher
    manifest = Manifest("blocks", CLASSES, PALETTE, tuple(items), ())
    manifest.save()
    save_supervision(dict.fromkeys((record.id for record in manifest.train), "scribble"))
    return manifest


def task(params: Params, round_name: str | None = "r1") -> TrainingTask:
    loss_weights = LossWeights(weak=1.0, sam=0.5, confident=0.25)
    return TrainingTask("stages.train_student", LABELS, params.schedule, loss_weights, round_name, SOURCES, 0.5)


def updated(params: Params, group: str, **changes: object) -> Params:
    return params.model_copy(update={group: getattr(params, group).model_copy(update=changes)})


def samples(manifest: Manifest, params: Params, sam_sample_prob: float = 0.5, seed: int = 0) -> TrainingDataset:
    return TrainingDataset(replace(task(params), sam_sample_prob=sam_sample_prob), manifest, seed)


def random_network(folder: Path) -> EncoderDecoder:
    """An untrained network, saved to a folder, that predicts more than one class."""
    model = MODELS.build(network_config(NETWORK, 3))
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=9)
    save_network(folder, NETWORK, CLASSES, PALETTE, model)
    return model


# The loss


def test_three_source_loss_by_hand():
    # five pixels in a row, two classes; logits (0, log 3) make the probabilities 1/4, 3/4
    logits = torch.zeros(1, 2, 1, 5)
    logits[0, 1] = math.log(3)
    labels = torch.tensor([[[1, 0, 1, 255, 0]]], dtype=torch.uint8)
    sources = torch.tensor([[[1, 1, 2, 2, 0]]], dtype=torch.uint8)
    right, wrong = math.log(4 / 3), math.log(4)
    # weak: one right, one wrong; SAM: one right, the other unlabeled; confident: none; source 0 never counts
    expected = [(right + wrong) / 2, right, 0.0, 0.0]
    loss, means = three_source_loss(logits, labels, sources, torch.tensor([2.0, 3.0, 5.0, 7.0]))
    assert means.tolist() == pytest.approx(expected)
    # SAM's one pixel counts for half a mean, as each of the annotators' two does
    assert loss.item() == pytest.approx(2 * expected[0] + 3 * right / 2)
    sources[0, 0, 0] = 2
    loss, means = three_source_loss(logits, labels, sources, torch.tensor([2.0, 3.0, 5.0, 7.0]))
    assert means.tolist() == pytest.approx([wrong, right, 0.0, 0.0])
    assert loss.item() == pytest.approx(2 * wrong + 3 * right)  # of two pixels the mean


def test_fine_masks_share_the_mean_of_sam():
    logits = torch.zeros(1, 2, 1, 6)
    logits[0, 1] = math.log(3)
    labels = torch.tensor([[[1, 0, 0, 1, 1, 255]]], dtype=torch.uint8)
    right, wrong, weights = math.log(4 / 3), math.log(4), torch.tensor([2.0, 3.0, 5.0, 7.0])

    def loss_of(*sources: int) -> float:
        return three_source_loss(logits, labels, torch.tensor([[sources]], dtype=torch.uint8), weights)[0].item()

    # a pixel of an annotator, two of SAM and two of a fine mask
    assert loss_of(1, 2, 2, 4, 4, 0) == pytest.approx(2 * right + (3 * 2 * wrong + 7 * 2 * right) / 4)
    assert loss_of(1, 1, 1, 4, 0, 0) == pytest.approx(2 * (right + 2 * wrong) / 3 + 7 * right / 3)  # as an annotator's
    assert loss_of(4, 4, 4, 4, 4, 4) == pytest.approx(7 * (3 * right + 2 * wrong) / 5)  # nothing else: the mean
    weights[1] = 0
    assert loss_of(1, 2, 2, 4, 4, 0) == pytest.approx(2 * right + 7 * right)  # SAM's do not dilute it


def test_loss_is_computed_in_float32_whatever_the_logits():
    logits = torch.randn(2, 3, 8, 8).bfloat16()
    labels, sources = torch.randint(0, 3, (2, 8, 8)), torch.randint(0, 4, (2, 8, 8))
    loss, _ = three_source_loss(logits, labels, sources, torch.ones(4))
    assert loss.dtype == torch.float32
    assert loss == three_source_loss(logits.float(), labels, sources, torch.ones(4))[0]


def test_loss_of_no_labeled_pixel_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nothing = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    loss, _ = three_source_loss(logits, nothing, torch.ones_like(nothing), torch.ones(4))
    loss.backward()
    assert loss.item() == logits.grad.abs().max() == 0


def test_parts_of_a_batch_have_its_loss_and_gradient(monkeypatch: pytest.MonkeyPatch):
    """Sources count by their pixels in the whole batch: here the first part has all of SAM's."""
    config = network_config(NETWORK, 3)
    config |= {"type": "ThreeSourceEncoderDecoder", "train_cfg": {"source_weights": [1.0] * 4}}
    config["data_preprocessor"] |= {"size": (32, 40)}
    model = network.build(config).eval()  # batch normalization and dropout see parts alone
    sources = torch.ones(4, 32, 40, dtype=torch.uint8)
    sources[0] = 2
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.stack([torch.full((32, 40), k % 3, dtype=torch.uint8), maps])))
        for k, maps in enumerate(sources)
    ]
    batch = {"inputs": [torch.randint(0, 256, (3, 32, 40), dtype=torch.uint8) for _ in range(4)]}

    def step(accumulate: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.0))
        monkeypatch.setattr(optimizer, "zero_grad", lambda: None)
        model.zero_grad()
        logged = train_in_parts(model, batch | {"data_samples": samples}, optimizer, accumulate)
        return logged, [parameter.grad.clone() for parameter in model.parameters()]

    (logged, gradients), (logged_in_parts, gradients_in_parts) = step(1), step(2)
    torch.testing.assert_close(dict(logged_in_parts), dict(logged), equal_nan=True)
    torch.testing.assert_close(gradients_in_parts, gradients, rtol=1e-3, atol=1e-5)
    assert logged["sam"] > 0 and model.batch_pixels is None


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("resnet18", "deeplabv3plus"),
        ("tf_efficientnet_lite0", "deeplabv3plus"),
        ("test_vit", "linear"),
        ("test_convnext", "upernet"),
    ],
)
def test_recomputed_activations_have_the_same_gradients(backbone: str, head: str):
    own = {"backbone": backbone, "head": head, "base_channels": 4 if backbone == "resnet18" else None}
    model, images = network.build(network_config(NETWORK.model_copy(update=own), 3)).train(), torch.randn(2, 3, 32, 48)

    def gradients() -> tuple[int, list[torch.Tensor]]:
        stored: list[int] = []
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(x.nbytes) or x, lambda x: x):
            features = model.backbone(images)
        features[-1].square().sum().backward()
        return sum(stored), [parameter.grad.clone() for parameter in model.backbone.parameters()]

    stored, expected = gradients()
    checkpoint_activations(model)
    stored_less, recomputed = gradients()
    torch.testing.assert_close(recomputed, expected)
    assert stored_less < 0.6 * stored


def test_a_backbone_that_cannot_recompute_is_refused():
    with pytest.raises(SesamError, match=r"the backbone ERFNet cannot recompute.*schedule\.accumulate"):
        checkpoint_activations(
            network.build(network_config(Architecture(config="erfnet_fcn_4xb4-160k_cityscapes-512x1024"), 3))
        )


# The samples


def test_sample_is_a_function_of_seed_and_t(manifest: Manifest, params: Params):
    def bytes_of(dataset: TrainingDataset, t: int) -> bytes:
        arrays = dataset[t]["inputs"], dataset[t]["data_samples"].gt_sem_seg.data
        return b"".join(array.numpy().tobytes() for array in arrays)

    first, second = samples(manifest, params), samples(manifest, params)
    forward = [bytes_of(first, t) for t in range(12)]
    assert [bytes_of(second, t) for t in reversed(range(12))] == forward[::-1]
    assert len(set(forward)) == 12
    assert bytes_of(samples(manifest, params, seed=1), 3) != forward[3]
    for start in (0, 5):  # every image once per epoch
        assert {first.record(t).id for t in range(start, start + 5)} == {record.id for record in manifest.train}


def test_sam_sample_prob_changes_sources_alone(manifest: Manifest, params: Params):
    for t in range(12):
        with_sam, without = (samples(manifest, params, frequency)[t] for frequency in (1.0, 0.0))
        assert torch.equal(with_sam["inputs"], without["inputs"])
        (labels, sources), dropped = (sample["data_samples"].gt_sem_seg.data for sample in (with_sam, without))
        assert set(sources.unique().tolist()) >= {1, 2, 3}
        assert torch.equal(torch.stack([labels, torch.where(sources == 2, 0, sources)]), dropped)


def test_label_follows_its_image(manifest: Manifest, params: Params):
    # unscaled and without jitter, exactly the sky has a blue above 200, and exactly the block a red above 150
    dataset = samples(manifest, updated(params, "schedule", scale_range=(1.0, 1.0)))
    dataset.after_resize = dataset.after_resize[:2]
    seen = set()
    for t in range(8):
        (blue, _, red), (labels, _) = dataset[t]["inputs"], dataset[t]["data_samples"].gt_sem_seg.data
        assert torch.equal(labels == 2, blue > 200) and torch.equal(labels == 1, red > 150)
        seen |= set(labels.unique().tolist())
    assert seen >= {0, 1, 2}


def test_wrong_labels_are_named(manifest: Manifest, params: Params):
    dataset = samples(manifest, params)
    record = dataset.record(0)
    path = LABELS / f"{record.id}.png"
    write_label(path, np.zeros((record.height, record.width + 1), np.uint8), PALETTE)
    with pytest.raises(SesamError, match=rf"{record.id}\.png is {record.width + 1}x.*, its image {record.width}x"):
        dataset[0]
    write_label(path, np.full((record.height, record.width), 3, np.uint8), PALETTE)
    with pytest.raises(SesamError, match=r"holds 3; expected are 0 to 2"):
        dataset[0]


@pytest.mark.parametrize("sizes", [[(6, 5), (6, 5)], [(6, 5), (4, 7)]])
def test_a_batch_is_its_samples_again(sizes: list[tuple[int, int]]):
    """Crops differ in size where images are smaller."""
    generator = torch.Generator().manual_seed(1)

    def draw(channels: int, size: tuple[int, int]) -> torch.Tensor:
        return torch.randint(0, 256, (channels, *size), dtype=torch.uint8, generator=generator)

    inputs, targets = [draw(3, size) for size in sizes], [draw(2, size) for size in sizes]
    samples = [
        {"inputs": image, "data_samples": SegDataSample(gt_sem_seg=PixelData(data=target))}
        for image, target in zip(inputs, targets, strict=True)
    ]
    batch = split(collate(samples))
    torch.testing.assert_close(batch["inputs"], inputs)
    torch.testing.assert_close([sample.gt_sem_seg.data for sample in batch["data_samples"]], targets)


def test_sampler_skips_and_processes_share_every_batch():
    sampler = ResumableSampler(10)
    sampler.skip(4)
    sampler.skip(2)
    assert list(sampler) == [6, 7, 8, 9] and len(sampler) == 4
    shares = [ResumableSampler(16, 8, rank, 2) for rank in range(2)]
    assert [list(share) for share in shares] == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    shares[1].skip(4)  # samples of one iteration
    assert list(shares[1]) == [12, 13, 14, 15]


# Training


def remove_as_on_nfs(folder: Path, remove=shutil.rmtree, **options) -> None:
    """shutil.rmtree, which on NFS fails if a file of the folder is open."""
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if Path(folder).absolute() in path.parents]
    remove(folder, **options)


_seed_iteration = hooks.LoggingHook.before_train_iter


def train_until(stop: int | None, params: Params, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train, to the end or to an interruption before an iteration; the iterations that it takes."""
    iterations = []

    def note(self, runner, batch_idx: int, data_batch=None) -> None:
        if batch_idx == stop:
            raise KeyboardInterrupt
        iterations.append(batch_idx)
        _seed_iteration(self, runner, batch_idx, data_batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if stop else nullcontext():
        patch.setattr(hooks, "CHECKPOINT_SECONDS", 0)
        patch.setattr(hooks.LoggingHook, "before_train_iter", note)
        train(task(params), params)
    assert CHECKPOINT.exists() == bool(stop)
    return iterations


def test_training_gives_the_same_bytes_with_any_workers_and_interruptions(
    manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    outputs = Path("models/r1/model.pth"), Path("metrics/training/r1/plots/metrics/loss.tsv")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_as_on_nfs)
        train(task(params), params)
    uninterrupted = [path.read_bytes() for path in outputs]
    assert not CHECKPOINT.parent.exists()
    assert len(uninterrupted[1].splitlines()) == 3  # header, iterations 10 and 20
    assert not multiprocessing.active_children()  # or the garbage collector waits for them
    assert capsys.readouterr().out.startswith("models/r1: 20 iterations in ")
    shutil.rmtree("models/r1")
    shutil.rmtree("metrics/training")

    three_workers = updated(params, "runtime", num_workers=3)
    train_until(13, three_workers, monkeypatch)
    assert train_until(None, three_workers, monkeypatch) == list(range(10, 20))
    assert [path.read_bytes() for path in outputs] == uninterrupted


def test_a_network_of_the_zoo_is_trained(manifest: Manifest, params: Params) -> None:
    own = {"config": "segformer_mit-b0_8xb2-160k_ade20k-512x512"}
    short = updated(updated(params, "network", **own), "schedule", max_iters=2, optimizer="config", lr=1e-3)
    train(task(short), short)
    classes, _ = predict(load_network(Path("models/r1"), CPU, CLASSES), load_image(manifest.train[0]), CPU)
    assert classes.shape == (manifest.train[0].height, manifest.train[0].width) and classes.max() < 3
    assert read_json(Path("models/r1/network.json"))["network"].keys() == {"config", "config_sha256"}
    Path("models/r1").rename("models/teacher")
    train(replace(task(short), init=Path("models/teacher")), short)


def test_a_frozen_backbone_is_not_trained(manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are the statistics of its normalization; no gradients reach it, also after an interruption."""
    before = MODELS.build(network_config(NETWORK, 3)).backbone.state_dict()
    torch.save(before, "backbone.pth")
    pretrained = updated(params, "network", pretrained="backbone.pth", sha256=sha256(Path("backbone.pth")))
    frozen = updated(pretrained, "schedule", backbone_lr_mult=0.0)
    wrappers, features = [], []
    monkeypatch.setattr(hooks.LoggingHook, "after_train", lambda _, runner: wrappers.append(runner.optim_wrapper))

    def build(*given) -> EncoderDecoder:
        model = initial_network(*given)
        model.backbone.register_forward_hook(lambda *given: features.extend(given[-1]))
        models.append(model)
        return model

    initial_network, models = training.initial_network, []
    monkeypatch.setattr(training, "initial_network", build)
    train_until(13, frozen, monkeypatch)
    assert train_until(None, frozen, monkeypatch) == list(range(10, 20))
    model, heads = models[-1], {"decode_head", "auxiliary_head"}
    assert len(features) == 4 * (13 + 10) and not any(feature.requires_grad for feature in features)
    assert all(weight.grad is None for weight in model.backbone.parameters())
    trained = {id(weight) for group in wrappers[-1].param_groups for weight in group["params"]}
    assert trained == {id(weight) for head in heads for weight in getattr(model, head).parameters()}
    after = load_network(Path("models/r1"), CPU).backbone.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert (
        model.decode_head.training and model.decode_head.sep_bottleneck[0].depthwise_conv.bn.num_batches_tracked == 20
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "mobilenet-v3-d8-s_lraspp_4xb4-320k_cityscapes-512x1024"},
        {"backbone": "inception_v3", "base_channels": None, "head": "linear"},
    ],
)
def test_a_network_that_needs_larger_images_says_so(
    manifest: Manifest, params: Params, changes: dict[str, str | None]
) -> None:
    own = updated(params, "network", **changes)
    with pytest.raises(
        SesamError,
        match=r"^network\.(config|backbone) \S+ failed on crops of 40x32 pixels .* larger ones: schedule\.crop_size",
    ):
        train(task(own), own)
    network = MODELS.build(network_config(own.network, 3)).eval()
    with pytest.raises(SesamError, match="cannot predict an image of 40x30 pixels"):
        predict(network, np.zeros((30, 40, 3), np.uint8), CPU)


@pytest.mark.parametrize("damage", ("flipped", "cut"))
def test_a_damaged_checkpoint_is_dropped(
    manifest: Manifest, params: Params, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_until(13, params, monkeypatch)
    content = bytearray(CHECKPOINT.read_bytes())
    if damage == "flipped":
        with ZipFile(CHECKPOINT) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 1
    CHECKPOINT.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert train_until(None, params, monkeypatch) == list(range(20))
    assert f"student-r1 is restarting from scratch: {CHECKPOINT} is damaged" in capsys.readouterr().out


def test_an_unfinished_training_of_other_inputs_is_dropped(
    manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # in this process the workers of an interrupted training would be waited for, five seconds each
    monkeypatch.setattr(training, "DataLoader", lambda *a, **k: DataLoader(*a, **k | {"num_workers": 0}))
    train_until(11, params, monkeypatch)
    assert train_until(None, params, monkeypatch)[0] == 10 and "changed" not in capsys.readouterr().out
    train_until(11, params, monkeypatch)
    digest = fingerprint.path_digest
    monkeypatch.setattr(fingerprint, "path_digest", lambda path: "other" if path.name == "seeds.py" else digest(path))
    assert train_until(None, params, monkeypatch)[0] == 0
    assert "sesam/seeds.py changed" in capsys.readouterr().out
    train_until(11, params, monkeypatch)
    record = manifest.train[0]
    write_label(LABELS / f"{record.id}.png", np.zeros((record.height, record.width), np.uint8), PALETTE)
    edit_params(Path(), schedule__lr=0.5)
    assert train_until(None, params, monkeypatch)[0] == 0
    assert "data/pseudo_labels/r1/labels, params.yaml: schedule changed" in capsys.readouterr().out


@pytest.mark.parametrize("iterations", (1, 10, 20))
def test_a_short_training_reaches_its_learning_rate(
    manifest: Manifest, params: Params, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(
        hooks.LoggingHook,
        "after_train_iter",
        lambda self, runner, *rest, **named: rates.extend(runner.optim_wrapper.get_lr()["lr"]),
    )
    short = updated(params, "schedule", max_iters=iterations)
    train(task(short), short)
    assert max(rates) == params.schedule.lr


def test_networks_differ_in_samples_weights_and_dropout(
    manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(**options) -> None:
        seeds.add((options["train_dataloader"].dataset.seed, options["custom_hooks"][0].seed))
        weights.add(float(options["model"].decode_head.conv_seg.weight[0, 0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "TrainingRunner", stop)
    seeds, weights = set(), set()
    for round_name in (None, "r1", "r2"):
        with pytest.raises(KeyboardInterrupt):
            train(replace(task(params, round_name), module="stages.train_baseline"), params)
    assert len(set().union(*seeds)) == len(seeds) == len(weights) == 3


def test_a_student_starts_from_its_teacher(
    manifest: Manifest, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    teacher = random_network(tmp_path / "teacher")
    student = replace(task(params), init=tmp_path / "teacher")
    started = {}

    def note(hook, runner) -> None:
        started.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    with monkeypatch.context() as patch:  # as mmengine hands it to the first iteration
        patch.setattr(hooks.LoggingHook, "before_train_epoch", note)
        train(student, params)
    assert all(torch.equal(started[key], value) for key, value in teacher.state_dict().items())
    wide = updated(params, "network", base_channels=2 * params.network.base_channels)
    with pytest.raises(SesamError, match=r"Set student\.init to pretrained"):
        training.initial_network(student, wide, manifest, 0)
    save_network(tmp_path / "teacher", NETWORK, CLASSES[::-1], PALETTE, teacher)
    with pytest.raises(SesamError, match=r"is a network of the classes sky, block, ground"):
        training.initial_network(student, params, manifest, 0)


@pytest.mark.parametrize(
    "round_name, key, iteration, reported",
    [(None, "baseline", 6, "iterations 1 to 10"), ("r1", "student", 12, "iterations 11 to 13")],
)
def test_a_diverging_training_stops(
    manifest: Manifest,
    params: Params,
    round_name,
    key: str,
    iteration: int,
    reported: str,
    monkeypatch: pytest.MonkeyPatch,
):
    after_train_iter = hooks.LoggingHook.after_train_iter

    def diverge(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if batch_idx == iteration:
            outputs = outputs | {"loss": torch.tensor(float("nan"))}
        after_train_iter(self, runner, batch_idx, data_batch, outputs)

    monkeypatch.setattr(hooks.LoggingHook, "after_train_iter", diverge)
    short = updated(params, "schedule", max_iters=13)
    with pytest.raises(SesamError, match=rf"{reported} add up to nan.*Lower {key}\.lr, or schedule\.lr.* 0\.02"):
        train(replace(task(short, round_name), module=f"stages.train_{key}"), short)
    assert not Path(f"models/{round_name or 'baseline'}/model.pth").exists()


def test_a_read_only_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS))))
    with pytest.raises(SesamError, match="models/r1 cannot be written: Read-only file system"):
        train(task(params), params)


def test_bfloat16_takes_mmengines_wrapper_and_needs_a_gpu(manifest: Manifest, params: Params):
    assert "type" not in training.optimizer_config(params.schedule, NETWORK)
    config = training.optimizer_config(params.schedule, NETWORK.model_copy(update={"dtype": "bfloat16"}))
    assert (config["type"], config["dtype"]) == ("AmpOptimWrapper", "bfloat16")
    with pytest.raises(SesamError, match=r"network\.dtype bfloat16 needs a GPU"):
        train(task(params), updated(params, "network", dtype="bfloat16"))


def test_a_missing_or_damaged_label_file_is_named(manifest: Manifest, params: Params):
    (LABELS / "street/2.png").write_bytes(b"not a picture")  # read in a worker
    with pytest.raises(SesamError, match=r"^\S+/labels/street/2\.png is not an image") as caught:
        train(task(params), params)
    assert "Traceback" not in str(caught.value)
    (SOURCES / "street/3.png").unlink()
    with pytest.raises(SesamError, match=r"data/pseudo_labels/r1/sources/street/3\.png is missing \(1 of 10"):
        train(task(params), params)


def test_the_logged_loss_of_a_source_is_over_the_iterations_that_have_it(params: Params) -> None:
    hook = hooks.LoggingHook(task(params), 0, Mock(n=0))
    hook.live, runner = Mock(), Mock()
    runner.optim_wrapper.get_lr.return_value = {"lr": [0.1]}
    for k in range(hooks.LOG_INTERVAL):
        means = {"loss": 1.0, "weak": 2.0, "sam": 3.0, "confident": math.nan, "fine": 4.0 if k < 3 else math.nan}
        hook.after_train_iter(runner, k, outputs={name: torch.tensor(value) for name, value in means.items()})
    ((_, row),) = hook.rows
    losses = {"loss": 1.0, "loss_weak": 2.0, "loss_sam": 3.0, "loss_fine": 4.0}
    assert row == losses | {"learning_rate": 0.1}


def test_every_backbone_of_timm_may_have_weights_that_no_head_reads(
    manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HRNet's last stages; DDP waits for the gradients of all weights unless it is told."""
    monkeypatch.setattr(training, "get_world_size", lambda: 2)
    for backbone, expected in {"resnet18": False, "hrnet_w18_small": True}.items():
        options = training._runner_options(task(params), updated(params, "network", backbone=backbone), CPU, Mock())
        assert options["cfg"]["model_wrapper_cfg"]["find_unused_parameters"] is expected


def test_a_killed_worker_is_reported(manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingDataset, "__getitem__", lambda samples, t: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SesamError, match=r"runtime\.num_workers"):
        train(task(params), params)


# The network


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``")
def test_published_network():
    """Every layer is that of the config that mmsegmentation ships, down to its strides and dilations."""

    def layers(config: dict) -> list[tuple[str, str]]:
        with torch.device("meta"):
            modules = MODELS.build(config).named_modules()
        leaves = [(name, str(module)) for name, module in modules if not list(module.children())]
        return [(name, text.replace("SyncBatchNorm", "BatchNorm2d")) for name, text in leaves if "loss" not in name]

    name = "deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py"
    published = Config.fromfile(Path(mmseg.__file__).parent / ".mim/configs" / name).model
    ours = network_config(load_preset(ROOT / "presets/cityscapes.yaml").network, 19)
    published.pretrained, published.data_preprocessor = None, ours["data_preprocessor"]
    assert layers(ours) == layers(published)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("size", "dilation"), [((9, 20), 3), ((7, 11), 2), ((9, 20), 12), ((9, 8), 12), ((1, 1), 2)])
def test_phased_depthwise_is_the_same_convolution(size: tuple[int, int], dilation: int, kernel: int) -> None:
    padding = dilation * (kernel // 2)
    conv = torch.nn.Conv2d(5, 5, kernel, padding=padding, dilation=dilation, groups=5, bias=False)
    ours, x, gradient = PhasedDepthwise(conv), torch.randn(2, 5, *size), torch.randn(2, 5, *size)
    results = []
    for module in (conv, ours):
        inputs = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        outputs = module(inputs)
        results.append((outputs, *torch.autograd.grad(outputs, (inputs, conv.weight), gradient)))
    torch.testing.assert_close(*results)


def test_which_convolutions_are_replaced_on_a_cpu() -> None:
    def conv(channels: int = 4, **options: object) -> torch.nn.Conv2d:
        usual = {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": channels, "bias": False}
        return torch.nn.Conv2d(channels, channels, **usual | options)

    model = torch.nn.ModuleDict(
        {
            "yes": conv(),
            "five": conv(kernel_size=5, padding=4),
            "groups": conv(groups=2),
            "whole": conv(groups=1),
            "bias": conv(bias=True),
            "stride": conv(stride=2),
            "padding": conv(padding=1),
            "plain": conv(dilation=1, padding=1),
            "even": conv(kernel_size=4),
            "circular": conv(padding_mode="circular"),
            "same": conv(padding="same"),
        }
    )
    assert set(find_dilated_depthwise(model)) == {"yes", "five"}


def test_an_image_too_large_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS.build(network_config(NETWORK, 3)).eval()
    monkeypatch.setattr(model, "encode_decode", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    slide = EvaluationParams(mode="slide", crop_size=(32, 32), stride=(16, 16))
    advice = {EvaluationParams(): r"Predict in windows \(evaluation\.mode slide", slide: r"Lower evaluation\.crop_size"}
    for evaluation, remedy in advice.items():
        with pytest.raises(SesamError, match=rf"an image of 60x40 pixels\. {remedy}.*sesam tile"):
            predict(model, np.zeros((40, 60, 3), np.uint8), CPU, evaluation)


def test_a_training_too_large_for_the_gpu(manifest: Manifest, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity")

    monkeypatch.setattr(training, "DataLoader", lambda *a, **k: DataLoader(*a, **k | {"num_workers": 0}))
    monkeypatch.setattr(hooks.LoggingHook, "before_train_iter", full)
    with pytest.raises(SesamError, match=r"student-r1 \(CUDA out of memory\)\. Raise schedule\.accumulate"):
        train(task(params), params)


@pytest.mark.parametrize(
    "evaluation", [EvaluationParams(), EvaluationParams(mode="slide", crop_size=(32, 40), stride=(20, 30))]
)
def test_mmsegmentation_loads_it_by_itself_and_predicts_the_same(tmp_path: Path, evaluation: EvaluationParams):
    random_network(tmp_path)
    theirs = init_model(str(tmp_path / "mmsegmentation.json"), str(tmp_path / "model.pth"), device="cpu")
    assert theirs.dataset_meta == {"classes": list(CLASSES), "palette": [list(color) for color in PALETTE]}
    assert theirs.decode_head.loss_decode.avg_non_ignore
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    theirs.test_cfg.update(evaluation.model_dump(include={"mode", "crop_size", "stride"}))
    expected = inference_model(theirs, np.ascontiguousarray(image[..., ::-1]))
    ours = load_network(tmp_path, CPU)
    assert ours.dataset_meta == theirs.dataset_meta
    classes, confidence = predict(ours, image, CPU, evaluation)
    maximum = expected.seg_logits.data.softmax(0).amax(0).numpy()
    assert classes.dtype == confidence.dtype == np.uint8
    assert (classes == expected.pred_sem_seg.data[0].numpy()).all() and len(np.unique(classes)) > 1
    assert (confidence == np.floor(255 * maximum)).all() and len(np.unique(confidence)) > 1


def test_a_mirrored_image_is_predicted_mirrored(tmp_path: Path):
    random_network(tmp_path)
    model, image = load_network(tmp_path, CPU), np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)

    def is_mirrored(evaluation: EvaluationParams) -> bool:
        pairs = (predict(model, np.ascontiguousarray(x), CPU, evaluation) for x in (image, image[:, ::-1]))
        return all(np.array_equal(a, b[:, ::-1]) for a, b in zip(*pairs, strict=True))

    assert is_mirrored(EvaluationParams(flip=True, scales=(0.5, 1.0))) and not is_mirrored(EvaluationParams())


def test_scales_average_probabilities(monkeypatch: pytest.MonkeyPatch):
    """With a network that tells black from white by the size of its input alone."""
    model, sizes = MODELS.build(network_config(NETWORK, 2)).eval(), []

    def encode_decode(inputs: torch.Tensor, _: object) -> torch.Tensor:
        sizes.append(tuple(inputs.shape[2:]))
        logits = torch.zeros(1, 2, *inputs.shape[2:])
        logits[:, 1] = {40: 2.0, 20: -1.0}[inputs.shape[2]]
        return logits

    monkeypatch.setattr(model, "encode_decode", encode_decode)
    evaluation = EvaluationParams(scales=(1.0, 0.5))
    classes, confidence = predict(model, np.zeros((40, 61, 3), np.uint8), CPU, evaluation)
    assert sizes == [(40, 61), (20, 30)]
    mean = (torch.tensor([2.0, -1.0]).sigmoid().mean()).item()
    assert (classes == 1).all() and (confidence == int(255 * mean)).all() and classes.shape == (40, 61)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "slide"}, "mode slide needs crop_size and stride"),
        ({"crop_size": (8, 8), "stride": (4, 4)}, "mode whole has neither"),
        ({"mode": "slide", "crop_size": (8, 8), "stride": (4, 9)}, "windows would leave pixels out"),
        ({"scales": ()}, "at least 1 item"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(keys: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        EvaluationParams(**keys)


def test_segment_labels_with_the_arithmetic_that_was_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 also on a GPU, for which the CPU stands in."""
    monkeypatch.chdir(tmp_path)
    random_network(tmp_path / "trained")
    Path("in").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("in/a.png")
    model, autocast, logits = load_network(tmp_path / "trained", CPU), torch.autocast, []
    encode_decode = model.encode_decode
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(network, "load_network", lambda *_: model)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(torch, "autocast", lambda _, enabled=True: autocast("cpu", torch.bfloat16, enabled))
    monkeypatch.setattr(model, "encode_decode", lambda *given: logits.append(encode_decode(*given)) or logits[-1])
    main(["segment", "in", "--model", "trained", "--out", "out"])
    with torch.autocast("cuda"):  # whatever is around it
        predict(model, np.zeros((20, 30, 3), np.uint8), torch.device("cuda"))
    assert [values.dtype for values in logits] == [torch.float32] * 2


def test_predict_gives_the_same_in_threads_and_in_processes(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_network(Path("models/baseline"))
    edit_params(Path(), rounds={"r1": {"teacher": "baseline", "fill_confident": False}}, runtime__device="cpu")
    monkeypatch.setattr(sys, "argv", ["teacher_predictions", "r1"])
    files = []
    for way in (batches._with_threads, batches._with_workers):
        monkeypatch.setattr(batches, "_with_threads", way)
        teacher_predictions.main()
        with ZipFile("data/rounds/r1/teacher_predictions/files-0000.zip") as archive:
            files.append({name: archive.read(name) for name in archive.namelist()})
        shutil.rmtree("data/rounds/r1/teacher_predictions")
    assert len(files[0]) == 2 * len(manifest.train) and files[0] == files[1]
    model = load_network(Path("models/baseline"), CPU)
    for record in manifest.train:
        for kind, expected in zip(("labels", "confidence"), predict(model, load_image(record), CPU), strict=True):
            content = files[0][f"{kind}/{record.id}.png"]
            assert np.array_equal(np.array(Image.open(io.BytesIO(content))), expected)


def test_a_head_that_draws_gives_the_same_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = random_network(tmp_path).eval(), np.zeros((32, 40, 3), np.uint8)
    encode_decode = model.encode_decode

    def with_draws(*arguments: object) -> torch.Tensor:
        logits = encode_decode(*arguments)
        time.sleep(0.01)  # for others to draw
        return logits + 9 * torch.rand(logits.shape)

    monkeypatch.setattr(model, "encode_decode", with_draws)
    model.decode_head.rand_init = True  # as SegNeXt's
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: predict(model, image, CPU)[1].tobytes(), range(12)))
    assert len(set(found)) == 1


def test_a_lack_of_memory_is_not_taken_for_a_damaged_or_unfit_network(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, full = random_network(tmp_path), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
    other = updated(params, "network", backbone="mobilenetv3_small_100")
    with pytest.raises(RuntimeError, match="allocate memory"), training._explain_errors(task(params), other):
        raise full
    monkeypatch.setattr(model, "encode_decode", Mock(side_effect=full))
    with pytest.raises(RuntimeError, match="allocate memory"):
        predict(model.eval(), np.zeros((32, 40, 3), np.uint8), CPU)
    monkeypatch.setattr(network, "build", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        load_network(tmp_path, CPU)


def test_predict_without_a_teacher_needs_no_torch(manifest: Manifest) -> None:
    program = "import sys; from stages import teacher_predictions as stage; stage.main(); print('torch' in sys.modules)"
    edit_params(Path(), rounds={"r1": {"teacher": "none", "fill_confident": False}})
    assert "\nFalse\n" in sh(sys.executable, "-c", program, "r1", cwd=Path())
    predictions = load_predictions("r1", manifest.train[0], 3)
    assert [np.unique(values).tolist() for values in predictions] == [[255], [0]]


@pytest.mark.parametrize("name, train, val", [("baseline", 0, 3), ("r1", 5, 3), ("baseline", 0, 0)])
def test_evaluate_keeps_predictions_for_any_report(
    manifest: Manifest, name: str, train: int, val: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that report.num_images is not an input of `evaluate`, and changing it repeats no inference."""
    random_network(Path("models", name))
    replace(manifest, val=manifest.train[:val]).save()
    for record in manifest.train[:val]:
        write_label(Path(f"data/fine/val/{record.id}.png"), np.zeros((record.height, record.width), np.uint8), PALETTE)
    write_text(Path("data/pseudo_labels/r1/ranking.csv"), "\n".join(["id", *(record.id for record in manifest.train)]))
    monkeypatch.setattr(sys, "argv", ["evaluate", name])
    edit_params(Path(), report__num_images=1, runtime__device="cpu")
    evaluate.main()
    assert (read_json(Path(f"metrics/networks/{name}.json"))["mIoU"] is None) == (val == 0)
    for kind, count in {"val": val, "train": train, "confidence": train}.items():
        assert len(list(Path("metrics/report_predictions", name, kind).rglob("*.png"))) == count


def test_only_stages_without_inference_depend_on_the_report() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = {name: entry.get("do", entry).get("params", ()) for name, entry in stages.items()}
    assert {name for name in params if {"report", "report.num_images"} & {*params[name]}} <= {"panels", "report"}


def test_a_network_of_before_there_were_other_heads_is_loaded(tmp_path: Path) -> None:
    random_network(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    expected = predict(load_network(tmp_path, CPU), image, CPU)
    saved = read_json(tmp_path / "network.json")
    assert saved["network"].pop("head") == "deeplabv3plus"
    write_json(tmp_path / "network.json", saved)
    assert all(map(np.array_equal, predict(load_network(tmp_path, CPU), image, CPU), expected))


@pytest.mark.parametrize(
    ("preset", "digest"),
    [("demo", "1c53e81f9effb251"), ("cityscapes", "70badcb6587f1953"), ("idd", "146b043b688e8f44")],
)
def test_mmsegmentations_config_of_deeplabv3plus_has_the_same_bytes(preset: str, digest: str) -> None:
    """As before there were other heads: of ResNets and of timm's convolutions."""
    network = load_preset(ROOT / f"presets/{preset}.yaml").network.model_copy(update={"head": "deeplabv3plus"})
    config = json.dumps(network_config(network, 3))
    assert hashlib.sha256(config.encode()).hexdigest().startswith(digest)


@pytest.mark.parametrize("colors", [[], [[0, 0, 0]] * 300])
def test_an_unusable_network_is_refused(tmp_path: Path, colors: list[list[int]]):
    def check(message: str, classes: tuple[str, ...] = CLASSES) -> None:
        with pytest.raises(SesamError, match=message):
            load_network(tmp_path, CPU, classes)

    check(r"network\.json is missing")
    random_network(tmp_path)
    load_network(tmp_path, CPU, CLASSES)
    check(r"is a network of the classes .*; those of the data set are", CLASSES[::-1])
    (tmp_path / "model.pth").write_bytes(b"not weights")
    check("Train it again")
    path = tmp_path / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"palette": colors}))
    check(rf"network\.json does not describe a network.*{len(colors)} colors for 3 classes.*Train it again")


def test_pretrained(tmp_path: Path):
    def backbone(base_channels: int) -> torch.nn.Module:
        return MODELS.build(network_config(NETWORK.model_copy(update={"base_channels": base_channels}), 3)).backbone

    saved, loaded, path = backbone(4), backbone(4), tmp_path / "r18.pth"
    with pytest.raises(SesamError, match=r"network\.pretrained: .*/r18\.pth cannot be loaded.*local file"):
        load_pretrained(loaded, str(path))
    torch.save({"state_dict": saved.state_dict() | {"fc.weight": torch.zeros(2, 2)}}, path)
    load_pretrained(loaded, str(path))
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(SesamError, match=r"does not fit network\.backbone at this depth and width"):
        load_pretrained(backbone(8), str(path))


@pytest.mark.parametrize(("base_channels", "memory_format"), [(4, torch.contiguous_format), (16, torch.channels_last)])
def test_the_memory_format_of_training(base_channels: int, memory_format: torch.memory_format):
    """In channels_last the gradients of the narrow network overwrite other memory, on CPUs without AVX-512."""
    model = network.build(network_config(NETWORK.model_copy(update={"base_channels": base_channels}), 3))
    network.optimize_for(CPU, model, "float32")
    weights = [conv.weight for conv in model.modules() if isinstance(conv, torch.nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=memory_format) for weight in weights)


def test_device(params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime = params.runtime.model_copy(update={"device": "auto"})
    assert resolve_device(runtime).type == "cpu"
    with pytest.raises(SesamError, match=r"runtime\.device is cuda"):
        resolve_device(runtime.model_copy(update={"device": "cuda"}))
