"""Training with mmengine's Runner: the same bytes for the same params, whatever the workers and interruptions."""

from __future__ import annotations

import ctypes
import shutil
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import barrier, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.registry import MODELS
from torch.utils.data import DataLoader
from tqdm import tqdm

from sesam.artifacts.atomic_io import (
    exclusive_lock,
    find_corruption,
    fingerprint_file,
    reraise_disk_errors,
    resume_or_reset,
)
from sesam.artifacts.fingerprint import stage_fingerprint
from sesam.artifacts.manifest import Dataset
from sesam.errors import SesamError
from sesam.execution.device import resolve_device
from sesam.execution.workers import exit_on_queue_error, translate_dataloader_errors
from sesam.params import LossWeights, Params, Precision, Schedule
from sesam.paths import network_dir, training_log_dir
from sesam.seeds import seed_of
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.data import ResumableSampler, TrainingSamples
from sesam.segmentation.hooks import CheckpointHook, LoggingHook
from sesam.segmentation.launch import is_worker_process, launch, process_group
from sesam.segmentation.loss import SOURCES
from sesam.segmentation.network import (
    ShiftedDepthwise,
    convert_sync_batchnorm,
    find_dilated_depthwise,
    load_network,
    network_config,
    save_network,
)

WORK = Path("models/.work")
OPTIMIZERS = {
    "sgd": {"type": "SGD", "momentum": 0.9, "weight_decay": 5e-4},
    "adamw": {"type": "AdamW", "weight_decay": 0.01, "fused": True},
}
WARMUP = 20  # iterations, at most a tenth of the schedule


@dataclass(frozen=True)
class TrainingTask:
    """What to train on. `name` is shown, seeds the training, and names its unfinished work.

    stage, round: as dvc.yaml has them. init: the folder of a trained network whose weights to start from, or None
    for initial ones.
    """

    name: str
    stage: str
    round: str | None
    labels: Path
    sources: Path | None
    schedule: Schedule
    loss: LossWeights
    sam_frequency: float
    init: Path | None = None

    @property
    def model(self) -> Path:
        return network_dir(self.round or "teacher")

    @property
    def log(self) -> Path:
        return training_log_dir(self.round or "teacher")


def train(task: TrainingTask, params: Params) -> None:
    """Train a network and write it to task.model; go on where an equal training stopped."""
    if params.runtime.num_gpus > 1 and not is_worker_process():
        launch(params.runtime, f"stages.{task.stage}", [task.round] if task.round else [])
        return
    device = resolve_device(params.runtime)
    with (
        process_group(device),
        reraise_disk_errors(task.model),
        exclusive_lock(WORK / task.name) if is_main_process() else nullcontext(),
    ):
        _train(task, params, device)


def _train(task: TrainingTask, params: Params, device: torch.device) -> None:
    rank, processes = get_dist_info()
    if task.schedule.batch_size % processes:
        raise SesamError(
            f"params.yaml: schedule.batch_size is {task.schedule.batch_size}, which {processes} processes cannot share. "
            "Set it to a multiple of runtime.num_gpus."
        )
    if device.type == "cpu" and task.schedule.batch_size < 2 * processes:  # a batch normalization of one value
        raise SesamError("params.yaml: schedule.batch_size must be 2 or more for each of runtime.num_gpus on a CPU.")
    if params.network.precision != "float32" and device.type == "cpu":
        raise SesamError("params.yaml: network.precision bfloat16 needs a GPU. Set it to float32.")
    dataset = Dataset.load()
    seed = seed_of(params.seed, task.name)  # every network has weights, samples and dropout of its own
    work = WORK / task.name
    _check_labels(task, dataset)
    if rank == 0:
        resume_or_reset(work, stage_fingerprint(task.stage, task.round))
        checkpoint = work / CheckpointHook.NAME
        if checkpoint.exists() and (damage := find_corruption(checkpoint)):
            print(f"{task.name} begins anew: {checkpoint} is damaged ({damage})", flush=True)
            checkpoint.unlink()
    barrier()
    samples = TrainingSamples(
        dataset.train,
        len(dataset.classes),
        task.labels,
        task.sources,
        task.schedule,
        task.sam_frequency,
        seed,
    )
    config = network_config(params.network, len(dataset.classes))
    started = time.monotonic()
    bar = tqdm(total=task.schedule.max_iters, desc=task.name, unit="it", leave=False, disable=rank > 0)
    with bar, warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # mmengine's on its own set-up
        hooks = [LoggingHook(task, seed, bar), CheckpointHook(work)]
        model = _initial_network(config, task, params, seed)
        if device.type == "cpu" or params.network.precision != "float32":
            model.to(memory_format=torch.channels_last)  # in which convolutions are faster there
        if processes > 1 and device.type == "cuda":  # PyTorch's is for GPUs; on CPUs each normalizes by its own part
            convert_sync_batchnorm(model)
        optimizer = optimizer_config(task.schedule, params.network.precision)
        workers = params.runtime.num_workers
        if device.type == "cpu":
            workers = (workers + 1) // 2  # the network computes on every core: each worker more makes it wait
        runner = _runner(model, samples, task, work, workers, hooks, optimizer, device)
        if processes == 1:
            runner.model.to(device)  # mmengine takes a GPU whenever there is one
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if device.type == "cpu":
            _keep_freed_memory()
            for name, conv in find_dilated_depthwise(model).items():
                model.set_submodule(name, ShiftedDepthwise(conv))
        try:
            with translate_dataloader_errors(params.runtime.num_workers):
                runner.train()
        except SesamError as problem:  # from a worker, in the words of its traceback
            raise SesamError(str(problem).rsplit("SesamError: ", 1)[-1].strip()) from None
    if rank > 0:
        return
    save_network(task.model, params.network, dataset.classes, dataset.palette, model)
    _close_log(runner)
    shutil.rmtree(work)
    fingerprint_file(work).unlink(missing_ok=True)
    print(f"{task.model}: {task.schedule.max_iters} iterations in {time.monotonic() - started:.1f} s", flush=True)


def _check_labels(task: TrainingTask, dataset: Dataset) -> None:
    """SesamError, before hours are spent, if an image's labels are missing."""
    folders = [folder for folder in (task.labels, task.sources) if folder is not None]
    files = [folder / f"{item.id}.png" for folder in folders for item in dataset.train]
    if missing := [file for file in files if not file.exists()]:
        raise SesamError(f"{missing[0]} is missing ({len(missing)} of {len(files)} label files are). Run `dvc repro`.")


def _close_log(runner: Runner) -> None:
    """Close mmengine's log: on NFS a folder with an open file cannot be removed."""
    for handler in list(runner.logger.handlers):
        runner.logger.removeHandler(handler)
        handler.close()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: every step asks for the same large blocks again, and mapping them costs time."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def _initial_network(config: dict[str, Any], task: TrainingTask, params: Params, seed: int) -> torch.nn.Module:
    """The network with the three-source loss and its weights before training."""
    weights = [getattr(task.loss, source) for source in SOURCES]
    preprocessor = config["data_preprocessor"] | {"size": list(task.schedule.crop_size)}  # pads what is smaller
    trainable = {"type": "SourceSegmentor", "train_cfg": {"source_weights": weights}, "data_preprocessor": preprocessor}
    MMLogger.get_instance("initial", log_level="ERROR")  # init_weights tells of every layer
    torch.manual_seed(seed % 2**63)
    model = MODELS.build(config | trainable)
    model.init_weights()  # in any case: mmengine would do it later, over the weights that are loaded here
    if task.init is not None:
        try:
            model.load_state_dict(load_network(task.init, torch.device("cpu")).state_dict())
        except RuntimeError:
            raise SesamError(
                f"{task.init} is not the network of params.yaml, so no training can start from its weights. "
                "Set student.init to initial, or `network_dir` to what made it."
            ) from None
        return model
    for conv in find_dilated_depthwise(model).values():
        # taps that reach past the crop are never trained; random, they disturbed the larger whole images
        conv.weight.data *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    if params.network.pretrained is not None:
        load_pretrained(model.backbone, params.network.pretrained, params.network.sha256)
    return model


def optimizer_config(schedule: Schedule, precision: Precision) -> dict[str, Any]:
    """mmengine's config of the optimizer; in bfloat16 its wrapper runs the network under autocast."""
    config: dict[str, Any] = {"optimizer": OPTIMIZERS[schedule.optimizer] | {"lr": schedule.lr}}
    if schedule.backbone_lr_mult != 1:
        config["paramwise_cfg"] = {"custom_keys": {"backbone": {"lr_mult": schedule.backbone_lr_mult}}}
    if precision == "float32":
        return config
    # bfloat16 has the range of float32, so nothing needs scaling
    return config | {"type": "AmpOptimWrapper", "dtype": precision, "loss_scale": {"enabled": False}}


def _runner(
    model: torch.nn.Module,
    samples: TrainingSamples,
    task: TrainingTask,
    work: Path,
    workers: int,
    hooks: list[Hook],
    optimizer: dict[str, Any],
    device: torch.device,
) -> Runner:
    schedule = task.schedule
    warmup = min(WARMUP, schedule.max_iters // 10)
    if warmup == 1:  # LinearLR takes its first step from a tenth, and would have no second
        warmup = 0
    decay = {"type": "PolyLR", "power": 0.9, "eta_min": 1e-4 * schedule.lr, "begin": warmup}
    schedulers = [decay | {"end": schedule.max_iters, "by_epoch": False}]
    if warmup:
        schedulers.insert(0, {"type": "LinearLR", "start_factor": 0.1, "end": warmup, "by_epoch": False})
    checkpoint = work / CheckpointHook.NAME
    rank, processes = get_dist_info()
    distributed: dict[str, Any] = {}
    if processes > 1:
        wrapper = {"broadcast_buffers": False, **({} if device.type == "cuda" else {"device_ids": None})}
        distributed = {"launcher": "pytorch", "cfg": {"model_wrapper_cfg": wrapper, "sync_bn": None}}
    return Runner(
        model=model,
        work_dir=str(work / "mmengine"),
        train_dataloader=DataLoader(
            samples,
            schedule.batch_size // processes,
            sampler=ResumableSampler(len(samples), schedule.batch_size, rank, processes),
            num_workers=workers,
            worker_init_fn=exit_on_queue_error,
            collate_fn=pseudo_collate,
        ),
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": schedule.max_iters},
        optim_wrapper=optimizer,
        param_scheduler=schedulers,
        default_hooks={"logger": None, "checkpoint": None, "timer": None, "runtime_info": None, "sampler_seed": None},
        custom_hooks=hooks,
        load_from=str(checkpoint) if checkpoint.exists() else None,
        resume=checkpoint.exists(),
        visualizer={"type": "Visualizer", "vis_backends": []},
        default_scope="mmseg",
        experiment_name=f"{task.name}-{time.monotonic_ns()}",
        randomness={"seed": 0},  # of no effect: the weights and every iteration are seeded on their own
        log_level="ERROR",
        **distributed,
    )
