"""The segmentation side: three-source loss, samples, training, prediction."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import mmseg
import numpy as np
import pytest
import torch
from conftest import ROOT, edit_params, write_params
from dataset_factories import THREE
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from torch.utils.data import DataLoader

from sesam.artifacts import fingerprint
from sesam.artifacts.atomic_io import sha256
from sesam.artifacts.label_png import write_label
from sesam.artifacts.manifest import Dataset, ImageRecord, load_image
from sesam.errors import SesamError
from sesam.execution import pipeline
from sesam.execution.device import resolve_device
from sesam.params import LossWeights, Params
from sesam.presets import load_preset
from sesam.segmentation import evaluation, hooks, training
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.data import ResumableSampler, TrainingSamples
from sesam.segmentation.loss import three_source_loss
from sesam.segmentation.network import ShiftedDepthwise, load_network, network_config, predict, save_network
from sesam.segmentation.training import TrainingTask, train
from stages import predict as predict_stage

CLASSES, PALETTE = ("ground", "block", "sky"), ((90, 60, 30), (200, 0, 0), (80, 120, 255))
CPU = torch.device("cpu")
LABELS, SOURCES = (Path("data/pseudo_labels/r1", part) for part in ("labels", "sources"))


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    """For networks this small a second thread only waits; and whatever a test draws, it draws again."""
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
    raw["network"] = NETWORK.model_dump()
    raw["schedule"] |= {"max_iters": 20, "batch_size": 2, "crop_size": [32, 40], "scale_range": [0.7, 1.3], "lr": 0.02}
    raw["runtime"] |= {"device": "cpu", "num_workers": 1}
    return Params.model_validate(raw)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
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
    Path("models").mkdir()
    Path("models/none").touch()  # what a round without a teacher depends on
    data = Dataset("blocks", CLASSES, PALETTE, tuple(items), ())
    data.save()
    return data


def task(params: Params, name: str = "test", sam_frequency: float = 0.5) -> TrainingTask:
    return TrainingTask(
        name=name,
        stage="train_student",
        round="r1",
        labels=LABELS,
        sources=SOURCES,
        schedule=params.schedule,
        loss=LossWeights(weak=1.0, sam=0.5, confident=0.25),
        sam_frequency=sam_frequency,
    )


def samples(data: Dataset, params: Params, sam_frequency: float = 0.5, seed: int = 0) -> TrainingSamples:
    return TrainingSamples(data.train, 3, LABELS, SOURCES, params.schedule, sam_frequency, seed)


# The loss


def test_a_disk_that_may_not_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(SesamError, match="models/r1 cannot be written: Read-only file system"):
        train(task(params), params)


def test_three_source_loss_by_hand():
    # five pixels in a row, two classes; logits (0, log 3) make the probabilities 1/4, 3/4
    logits = torch.zeros(1, 2, 1, 5)
    logits[0, 1] = math.log(3)
    labels = torch.tensor([[[1, 0, 1, 255, 0]]], dtype=torch.uint8)
    sources = torch.tensor([[[1, 1, 2, 2, 0]]], dtype=torch.uint8)
    right, wrong = math.log(4 / 3), math.log(4)
    # weak: one right, one wrong; SAM: one right, the other unlabeled; confident: none; source 0 never counts
    expected = [(right + wrong) / 2, right, 0.0]
    loss, means = three_source_loss(logits, labels, sources, torch.tensor([2.0, 3.0, 5.0]))
    assert means.tolist() == pytest.approx(expected)
    # SAM's one pixel counts for half a mean, as each of the annotators' two does
    assert loss.item() == pytest.approx(2 * expected[0] + 3 * right / 2)
    sources[0, 0, 0] = 2
    loss, means = three_source_loss(logits, labels, sources, torch.tensor([2.0, 3.0, 5.0]))
    assert means.tolist() == pytest.approx([wrong, right, 0.0])
    assert loss.item() == pytest.approx(2 * wrong + 3 * right)  # of two pixels the mean


def test_loss_is_computed_in_float32_whatever_the_logits():
    logits = torch.randn(2, 3, 8, 8).bfloat16()
    labels, sources = torch.randint(0, 3, (2, 8, 8)), torch.randint(0, 4, (2, 8, 8))
    loss, _ = three_source_loss(logits, labels, sources, torch.ones(3))
    assert loss.dtype == torch.float32
    assert loss == three_source_loss(logits.float(), labels, sources, torch.ones(3))[0]


def test_bfloat16_takes_mmengines_wrapper_and_needs_a_gpu(data: Dataset, params: Params):
    assert "type" not in training.optimizer_config(params.schedule, "float32")
    config = training.optimizer_config(params.schedule, "bfloat16")
    assert (config["type"], config["dtype"]) == ("AmpOptimWrapper", "bfloat16")
    network = params.network.model_copy(update={"precision": "bfloat16"})
    with pytest.raises(SesamError, match=r"network\.precision bfloat16 needs a GPU"):
        train(task(params), params.model_copy(update={"network": network}))


def test_every_network_has_samples_weights_and_dropout_of_its_own(
    data: Dataset, params: Params, monkeypatch: pytest.MonkeyPatch
):
    seeds = {}

    class Noted(Exception):
        pass

    def noting(name: str, made_with: int):
        seeds.setdefault(name, []).append(made_with)

    def samples_of(*arguments):
        noting(current, arguments[-1])
        return TrainingSamples(*arguments)

    def record_of(task, seed, bar):
        noting(current, seed)
        return object()

    def resolve_weights(config, task, params, seed):
        noting(current, seed)
        raise Noted

    monkeypatch.setattr(training, "TrainingSamples", samples_of)
    monkeypatch.setattr(training, "LoggingHook", record_of)
    monkeypatch.setattr(training, "_initial_network", resolve_weights)
    for current in ("teacher", "student-r1", "student-r2"):
        with pytest.raises(Noted):
            train(task(params, current), params)
    assert all(len(used) == 3 and len(set(used)) == 1 for used in seeds.values())
    assert len({used[0] for used in seeds.values()}) == 3


def test_loss_of_no_labeled_pixel_is_zero_with_zero_gradient():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    nothing = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    loss, _ = three_source_loss(logits, nothing, torch.ones_like(nothing), torch.ones(3))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


# The samples


def test_sample_is_a_function_of_seed_and_t(data: Dataset, params: Params):
    def bytes_of(dataset: TrainingSamples, t: int) -> bytes:
        sample = dataset[t]
        return sample["inputs"].numpy().tobytes() + sample["data_samples"].gt_sem_seg.data.numpy().tobytes()

    one, two = samples(data, params), samples(data, params)
    forward = [bytes_of(one, t) for t in range(12)]
    assert [bytes_of(two, t) for t in reversed(range(12))] == forward[::-1]
    assert len(set(forward)) == 12
    assert bytes_of(samples(data, params, seed=1), 3) != forward[3]
    for start in (0, 5):  # every image once before any comes again
        assert {one.item(t).id for t in range(start, start + 5)} == {item.id for item in data.train}


@pytest.mark.parametrize(("frequency", "present"), [(0.0, 0), (1.0, 12)])
def test_sam_frequency_at_its_ends(data: Dataset, params: Params, frequency: float, present: int):
    maps = [samples(data, params, frequency)[t]["data_samples"].gt_sem_seg.data[1] for t in range(12)]
    assert sum(bool((m == 2).any()) for m in maps) == present
    assert all((m == 1).any() and (m == 3).any() for m in maps)


def test_sam_frequency_changes_sources_alone(data: Dataset, params: Params):
    for t in range(6):
        with_sam, without = (samples(data, params, frequency)[t] for frequency in (1.0, 0.0))
        assert torch.equal(with_sam["inputs"], without["inputs"])
        kept, dropped = (sample["data_samples"].gt_sem_seg.data for sample in (with_sam, without))
        assert torch.equal(kept[0], dropped[0])
        assert torch.equal(torch.where(kept[1] == 2, 0, kept[1]), dropped[1])


def test_label_follows_its_image(data: Dataset, params: Params):
    # unscaled and without jitter, exactly the sky has a blue above 200, and exactly the block a red above 150
    unscaled = params.model_copy(update={"schedule": params.schedule.model_copy(update={"scale_range": (1.0, 1.0)})})
    dataset = samples(data, unscaled)
    dataset.after_resize = dataset.after_resize[:2]
    seen = set()
    for t in range(8):
        sample = dataset[t]
        labels, _ = sample["data_samples"].gt_sem_seg.data
        assert torch.equal(labels == 2, sample["inputs"][0] > 200)
        assert torch.equal(labels == 1, sample["inputs"][2] > 150)
        seen |= set(labels.unique().tolist())
    assert seen >= {0, 1, 2}


def test_wrong_labels_are_named(data: Dataset, params: Params):
    dataset, item = samples(data, params), data.train[0]
    path = LABELS / f"{item.id}.png"
    write_label(path, np.zeros((item.height, item.width + 1), np.uint8), PALETTE)
    with pytest.raises(SesamError, match=r"street/0\.png is 61x40 pixels, its image 60x40"):
        dataset.read(item)
    write_label(path, np.full((item.height, item.width), 3, np.uint8), PALETTE)
    with pytest.raises(SesamError, match=r"holds 3; expected are 0 to 2"):
        dataset.read(item)


def test_sampler_skips():
    sampler = ResumableSampler(10)
    sampler.skip(4)
    sampler.skip(2)
    assert list(sampler) == [6, 7, 8, 9]
    assert len(sampler) == 4


def test_processes_share_every_batch():
    parts = [ResumableSampler(16, 8, rank, 2) for rank in range(2)]
    assert [list(part) for part in parts] == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    parts[1].skip(4)  # one iteration's
    assert list(parts[1]) == [12, 13, 14, 15]


# Training


def weights() -> bytes:
    return Path("models/r1/model.pth").read_bytes()


def remove_as_on_nfs(folder: Path, remove=shutil.rmtree, **how) -> None:
    """shutil.rmtree, which on NFS fails where a file of the folder is open."""
    opened = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if Path(folder).absolute() in path.parents]
    remove(folder, **how)


def test_training_gives_the_same_bytes_whatever_workers_and_interruptions(
    data: Dataset, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as watched:
        watched.setattr(shutil, "rmtree", remove_as_on_nfs)
        train(task(params), params)
    uninterrupted, log = weights(), Path("metrics/training/r1/plots/metrics/loss.tsv").read_bytes()
    assert not Path("models/.work/test").exists()
    assert len(log.splitlines()) == 3  # header, iterations 10 and 20
    assert capsys.readouterr().out.startswith("models/r1: 20 iterations in ")
    shutil.rmtree("models/r1")
    shutil.rmtree("metrics/training")

    three = params.model_copy(update={"runtime": params.runtime.model_copy(update={"num_workers": 3})})
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(hooks, "CHECKPOINT_SECONDS", 0)
        interrupted.setattr(hooks.LoggingHook, "before_train_iter", _stop_at(13))
        train(task(three), three)
    assert Path("models/.work/test/checkpoint.pth").exists()
    seen = []
    monkeypatch.setattr(hooks.LoggingHook, "before_train_iter", _noting(seen))
    train(task(three), three)
    assert seen == list(range(10, 20))
    assert weights() == uninterrupted
    assert Path("metrics/training/r1/plots/metrics/loss.tsv").read_bytes() == log


@pytest.mark.parametrize("damage", ("flipped", "cut"))
def test_a_damaged_checkpoint_is_no_part_of_a_training(
    data: Dataset, params: Params, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(hooks, "CHECKPOINT_SECONDS", 0)
        interrupted.setattr(hooks.LoggingHook, "before_train_iter", _stop_at(13))
        train(task(params), params)
    checkpoint = Path("models/.work/test/checkpoint.pth")
    content = bytearray(checkpoint.read_bytes())
    if damage == "flipped":
        with ZipFile(checkpoint) as archive:
            largest = max(archive.infolist(), key=lambda one: one.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 1
    checkpoint.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    seen: list[int] = []
    monkeypatch.setattr(hooks.LoggingHook, "before_train_iter", _noting(seen))
    train(task(params), params)
    assert seen == list(range(20))
    assert "test begins anew: models/.work/test/checkpoint.pth is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("iterations", (1, 10, 20))
def test_a_short_training_reaches_its_learning_rate(
    data: Dataset, params: Params, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(
        hooks.LoggingHook,
        "after_train_iter",
        lambda self, runner, *rest, **named: rates.extend(runner.optim_wrapper.get_lr()["lr"]),
    )
    schedule = params.schedule.model_copy(update={"max_iters": iterations})
    train(replace(task(params), schedule=schedule), params)
    assert max(rates) == params.schedule.lr


_seed_iteration = hooks.LoggingHook.before_train_iter


def _stop_at(iteration: int):
    def hook(self, runner, batch_idx: int, data_batch=None) -> None:
        if batch_idx == iteration:
            raise KeyboardInterrupt
        _seed_iteration(self, runner, batch_idx, data_batch)

    return hook


def _noting(seen: list[int]):
    def hook(self, runner, batch_idx: int, data_batch=None) -> None:
        seen.append(batch_idx)
        _seed_iteration(self, runner, batch_idx, data_batch)

    return hook


def test_unfinished_work_of_something_else_is_dropped_saying_why(
    data: Dataset, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A training is killed, something that it depends on changes, and it goes on."""
    # in this process a killed training's workers would be waited for, five seconds each
    monkeypatch.setattr(training, "DataLoader", lambda *a, **k: DataLoader(*a, **k | {"num_workers": 0}))

    def interrupted() -> None:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(hooks, "CHECKPOINT_SECONDS", 0)
            patch.setattr(hooks.LoggingHook, "before_train_iter", _stop_at(11))
            train(task(params), params)
        assert Path("models/.work/test/checkpoint.pth").exists()

    def starts_at() -> int:
        seen: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(hooks.LoggingHook, "before_train_iter", _noting(seen))
            train(task(params), params)
        return seen[0]

    interrupted()
    assert starts_at() == 10 and "begins anew" not in capsys.readouterr().out
    interrupted()
    digest = fingerprint.path_digest
    monkeypatch.setattr(fingerprint, "path_digest", lambda path: "other" if path.name == "seeds.py" else digest(path))
    assert starts_at() == 0
    assert "begins anew: since it was interrupted, sesam/seeds.py changed" in capsys.readouterr().out
    interrupted()
    item = data.train[0]
    write_label(LABELS / f"{item.id}.png", np.zeros((item.height, item.width), np.uint8), PALETTE)
    edit_params(Path(), schedule__lr=0.5)
    assert starts_at() == 0
    said = "since it was interrupted, data/pseudo_labels/r1/labels, params.yaml: schedule changed"
    assert said in capsys.readouterr().out


def test_a_student_starts_from_its_teacher(
    data: Dataset, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = network_config(params.network, 3)
    torch.manual_seed(5)
    teacher = MODELS.build(config)
    save_network(tmp_path / "teacher", params.network, *THREE, teacher)
    student = replace(task(params), init=tmp_path / "teacher")
    started = {}

    def note(hook, runner) -> None:
        started.update({key: value.clone() for key, value in runner.model.state_dict().items()})

    with monkeypatch.context() as patch:  # as mmengine hands it to the first iteration
        patch.setattr(hooks.LoggingHook, "before_train_epoch", note)
        train(student, params)
    assert all(torch.equal(started[key], value) for key, value in teacher.state_dict().items())
    wide = params.model_copy(
        update={"network": params.network.model_copy(update={"base_channels": 2 * params.network.base_channels})}
    )
    with pytest.raises(SesamError, match=r"student\.init"):
        training._initial_network(network_config(wide.network, 3), student, wide, 0)


@pytest.mark.parametrize("bad, told", [(6, "iterations 1 to 10"), (12, "iterations 11 to 13")])
def test_a_training_that_diverges_stops_and_says_so(
    data: Dataset, params: Params, bad: int, told: str, monkeypatch: pytest.MonkeyPatch
):
    loss = hooks.LoggingHook.after_train_iter

    def diverged(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if batch_idx == bad:
            outputs = outputs | {"loss": torch.tensor(float("nan"))}
        loss(self, runner, batch_idx, data_batch, outputs)

    monkeypatch.setattr(hooks.LoggingHook, "after_train_iter", diverged)
    short = params.model_copy(update={"schedule": params.schedule.model_copy(update={"max_iters": 13})})
    with pytest.raises(
        SesamError, match=rf"{told} add up to nan: the training has diverged\. Lower student\."
    ):
        train(task(short), short)
    assert not Path("models/r1/model.pth").exists()


def test_missing_label_file(data: Dataset, params: Params):
    (SOURCES / "street/3.png").unlink()
    with pytest.raises(SesamError, match=r"data/pseudo_labels/r1/sources/street/3\.png is missing \(1 of 10"):
        train(task(params), params)


def test_damaged_file_met_by_a_worker(data: Dataset, params: Params):
    (LABELS / "street/2.png").write_bytes(b"not a picture")
    with pytest.raises(SesamError, match=r"^\S+/labels/street/2\.png cannot be read as an image") as caught:
        train(task(params), params)
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_is_killed_is_told(data: Dataset, params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingSamples, "__getitem__", lambda samples, t: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SesamError, match=r"reads files has ended.*runtime\.num_workers"):
        train(task(params), params)


# The network


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``")
def test_published_network():
    """Every layer is that of the config that mmsegmentation ships, down to its strides and dilations."""
    name = "deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py"
    published = Config.fromfile(Path(mmseg.__file__).parent / ".mim/configs" / name).model
    published.pretrained = published.data_preprocessor = None
    ours = network_config(load_preset(ROOT / "presets/cityscapes.yaml").network, 19)
    assert _layers(ours) == _layers(published)


def _layers(config: dict) -> dict[str, str]:
    with torch.device("meta"):
        model = MODELS.build(config)
    return {
        name: str(module).replace("SyncBatchNorm", "BatchNorm2d")
        for name, module in model.named_modules()
        if not list(module.children()) and "loss" not in name and name != "data_preprocessor"
    }


def test_shifted_depthwise_is_the_same_convolution():
    for size, dilation in [((9, 20), 3), ((9, 20), 12), ((9, 8), 12)]:
        conv = torch.nn.Conv2d(5, 5, 3, padding=dilation, dilation=dilation, groups=5, bias=False)
        x = torch.randn(2, 5, *size)
        expected = conv(x)
        torch.testing.assert_close(ShiftedDepthwise(conv)(x), expected)


def test_an_image_for_which_the_gpu_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = MODELS.build(network_config(NETWORK, 3)).eval()
    monkeypatch.setattr(model, "encode_decode", full)
    with pytest.raises(SesamError, match=r"an image of 60x40 pixels.*sesam"):
        predict(model, np.zeros((40, 60, 3), np.uint8), CPU)


def test_predict(tmp_path: Path):
    config = network_config(NETWORK, 3)
    made = MODELS.build(config)
    torch.nn.init.normal_(made.decode_head.conv_seg.weight, std=9)  # initial ones see one class everywhere
    save_network(tmp_path, NETWORK, *THREE, made)
    model = load_network(tmp_path, CPU)
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    classes, confidence = predict(model, image, CPU)
    assert classes.dtype == confidence.dtype == np.uint8
    # mmsegmentation's own way from a config and an image to a prediction
    theirs = MODELS.build(Config({"model": config}).model).eval()
    theirs.load_state_dict(torch.load(tmp_path / "model.pth")["state_dict"])
    bgr = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
    about = SegDataSample(metainfo={"ori_shape": (37, 50), "img_shape": (37, 50)})
    with torch.inference_mode():
        (expected,) = theirs.test_step({"inputs": [bgr], "data_samples": [about]})
    share = expected.seg_logits.data.softmax(0).amax(0).numpy()
    assert (classes == expected.pred_sem_seg.data[0].numpy()).all() and len(np.unique(classes)) > 1
    assert (confidence == np.floor(255 * share)).all() and len(np.unique(confidence)) > 1


def test_the_stage_predicts_the_same_in_threads_and_in_processes(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MODELS.build(network_config(NETWORK, 3))
    torch.nn.init.normal_(made.decode_head.conv_seg.weight, std=9)
    save_network(Path("models/teacher"), NETWORK, CLASSES, PALETTE, made)
    edit_params(Path(), rounds={"r1": {"teacher": "teacher", "fill_confident": False}}, runtime__device="cpu")
    monkeypatch.setattr(sys, "argv", ["predict", "r1"])
    found = []
    for way in (pipeline._with_threads, pipeline._with_workers):
        monkeypatch.setattr(pipeline, "_with_threads", way)
        predict_stage.main()
        with ZipFile("data/rounds/r1/predictions/files-0000.zip") as archive:
            found.append({name: archive.read(name) for name in archive.namelist()})
        shutil.rmtree("data/rounds/r1/predictions")
    assert len(found[0]) == 2 * len(data.train) and found[0] == found[1]
    model = load_network(Path("models/teacher"), CPU)
    for item in data.train:
        classes, confidence = predict(model, load_image(item), CPU)
        for kind, expected in (("labels", classes), ("confidence", confidence)):
            content = found[0][f"{kind}/{item.id}.png"]
            assert np.array_equal(np.array(Image.open(io.BytesIO(content))), expected)


def test_mmsegmentation_loads_it_by_itself(tmp_path: Path):
    """By its own init_model and inference_model, with class names and palette; and predicts the same."""
    torch.manual_seed(3)
    save_network(tmp_path, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    theirs = init_model(str(tmp_path / "mmsegmentation.json"), str(tmp_path / "model.pth"), device="cpu")
    assert theirs.dataset_meta == {"classes": list(THREE[0]), "palette": [list(color) for color in THREE[1]]}
    assert theirs.decode_head.loss_decode.avg_non_ignore
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3)).astype(np.uint8)
    found = inference_model(theirs, np.ascontiguousarray(image[..., ::-1])).pred_sem_seg.data[0].numpy()
    ours = load_network(tmp_path, CPU)
    assert ours.dataset_meta == theirs.dataset_meta
    assert np.array_equal(found, predict(ours, image, CPU)[0])


def test_missing_and_damaged_network(tmp_path: Path):
    with pytest.raises(SesamError, match=r"network\.json is missing"):
        load_network(tmp_path / "none", CPU)
    save_network(tmp_path, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    (tmp_path / "model.pth").write_bytes(b"not weights")
    with pytest.raises(SesamError, match="Train it again"):
        load_network(tmp_path, CPU)


def test_a_network_of_other_classes_judges_nothing(tmp_path: Path, params: Params):
    save_network(tmp_path, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    for classes in (THREE[0], THREE[0][::-1]):  # as many, but in another order
        judging = evaluation.EvaluationTask(
            classes, THREE[1], {"val": frozenset(), "train": frozenset()}, tmp_path / "out"
        )
        if classes == THREE[0]:
            evaluation.steps(tmp_path, judging, params.runtime)
        else:
            with pytest.raises(SesamError, match=r"is a network of the classes .*; those of the data set are"):
                evaluation.steps(tmp_path, judging, params.runtime)


@pytest.mark.parametrize("colors", [[], [[0, 0, 0]] * 300])
def test_a_network_has_a_color_for_each_class(tmp_path: Path, colors: list[list[int]]):
    save_network(tmp_path, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    path = tmp_path / "network.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"palette": colors}))
    said = rf"network\.json does not describe a network.*{len(colors)} colors of 3 classes.*Train it again"
    with pytest.raises(SesamError, match=said):
        load_network(tmp_path, CPU)


CRAFTED = {
    "a program": {"model": {"type": "os.system", "command": "touch ran"}},
    "a program as backbone": {"network": NETWORK.model_dump() | {"backbone": {"type": "os.system"}}, "classes": 3},
    "a model of a hub": {"network": {"backbone": "hf-hub:someone/model", "base_channels": None}, "classes": 3},
    "more": {"network": {"type": "os.system"}, "classes": 3, "model": {}},
    "no classes": {"network": {}},
    "a list": [],
    "nothing": None,
    "a huge one": {"network": {"backbone": "resnet18", "base_channels": 10**9}, "classes": 3},
}


@pytest.mark.parametrize("crafted", CRAFTED.values(), ids=CRAFTED)
def test_a_pulled_network_builds_nothing_but_a_network(
    crafted: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path, NETWORK, *THREE, MODELS.build(network_config(NETWORK, 3)))
    good = json.loads((tmp_path / "network.json").read_text())
    if isinstance(crafted, dict) and isinstance(crafted.get("network"), dict):
        crafted = crafted | {"network": good["network"] | crafted["network"]}
    (tmp_path / "network.json").write_text(json.dumps(crafted))
    with pytest.raises(SesamError, match=r"network\.json|network\.backbone"):
        load_network(tmp_path, CPU)
    assert not Path("ran").exists()


def test_pretrained(tmp_path: Path):
    def backbone(width: int) -> torch.nn.Module:
        config = network_config(NETWORK.model_copy(update={"base_channels": width}), 3)
        return MODELS.build(config).backbone

    with pytest.raises(SesamError, match=r"network\.pretrained: nowhere/r18\.pth cannot be loaded.*local file"):
        load_pretrained(backbone(4), "nowhere/r18.pth")
    given, taken = backbone(4), backbone(4)
    path = tmp_path / "r18.pth"
    torch.save({"state_dict": given.state_dict() | {"fc.weight": torch.zeros(2, 2)}}, path)
    load_pretrained(taken, str(path))
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), taken.parameters(), strict=True))
    with pytest.raises(SesamError, match=r"does not fit network\.backbone at this depth and width"):
        load_pretrained(backbone(8), str(path))


def test_device(params: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime = params.runtime.model_copy(update={"device": "auto"})
    assert resolve_device(runtime).type == "cpu"
    with pytest.raises(SesamError, match=r"runtime\.device is cuda"):
        resolve_device(runtime.model_copy(update={"device": "cuda"}))
