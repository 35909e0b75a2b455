"""Training with mmengine's Runner: the same params give the same bytes, whatever the workers and interruptions."""

import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import barrier, get_dist_info, get_world_size, is_main_process
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmseg.models.segmentors import EncoderDecoder
from torch import nn
from torch.utils.data import DataLoader

from sesam.artifacts import atomic_io
from sesam.artifacts.fingerprint import stage_fingerprint
from sesam.artifacts.manifest import Manifest
from sesam.errors import SesamError, limit_reached
from sesam.execution.device import resolve_device
from sesam.execution.launch import is_worker_process, launch, process_group
from sesam.execution.progress import ProgressBar
from sesam.execution.workers import exit_on_queue_error, translate_dataloader_errors
from sesam.params import RESNETS, NetworkParams, Params, Schedule
from sesam.paths import network_dir
from sesam.seeds import seed_of
from sesam.segmentation.backbones import load_pretrained
from sesam.segmentation.data import ResumableSampler, TrainingDataset, TrainingTask, collate
from sesam.segmentation.hooks import CheckpointHook, LoggingHook
from sesam.segmentation.loss import SOURCES
from sesam.segmentation.network import (
    checkpoint_activations,
    find_dilated_depthwise,
    load_network,
    network_config,
    optimize_for,
    save_network,
    training_preprocessor,
)
from sesam.segmentation.runner import AccumulatingLoop, TrainingRunner
from sesam.segmentation.zoo import build, read_config

OPTIMIZERS = {
    "sgd": {"optimizer": {"type": "SGD", "momentum": 0.9, "weight_decay": 5e-4}},
    "adamw": {"optimizer": {"type": "AdamW", "weight_decay": 0.01, "fused": True}},
}
WARMUP_ITERS = 20  # iterations, at most a tenth of the schedule


def train(task: TrainingTask, params: Params) -> None:
    """Train a network and write it to its folder; resume an interrupted training with the same inputs."""
    if params.runtime.training_gpus > 1 and not is_worker_process():
        launch(params.runtime, task.module, [task.round_name] if task.round_name else [])
        return
    device = resolve_device(params.runtime)
    with (
        process_group(device),
        atomic_io.reraise_disk_errors(network_dir(task.network)),
        atomic_io.exclusive_lock(task.work_dir) if is_main_process() else nullcontext(),
    ):
        _train(task, params, device)


def _train(task: TrainingTask, params: Params, device: torch.device) -> None:
    manifest, is_main = Manifest.load(), is_main_process()
    _check(task, params, device, manifest)
    if is_main:
        _resume_or_restart(task)
    barrier()
    started = time.monotonic()
    bar = ProgressBar(total=task.schedule.max_iters, desc=task.name, unit="it", disable=not is_main)
    with bar, warnings.catch_warnings(action="ignore"):  # mmengine's about its own set-up
        seed = seed_of(params.seed, task.name)  # so that networks differ in weights, samples and dropout
        log = LoggingHook(task, seed, bar)
        model = initial_network(task, params, manifest, seed)
        optimize_for(device, model, params.network.dtype)
        if task.schedule.checkpoint_activations:
            checkpoint_activations(model)
        runner = TrainingRunner(
            model=model,
            train_dataloader=_dataloader(TrainingDataset(task, manifest, seed), params, device),
            custom_hooks=[log, CheckpointHook(task.work_dir)],
            **_runner_options(task, params, device, model),
        )
        if get_world_size() == 1:
            model.to(device)  # mmengine takes a GPU whenever there is one
        try:
            with _explain_errors(task, params):
                runner.train()
        finally:  # end the reading processes now: the garbage collector would wait five seconds for each
            runner.train_loop.dataloader_iterator = None
    if is_main:
        folder, seconds = network_dir(task.network), time.monotonic() - started
        save_network(folder, params.network, manifest.classes, manifest.palette, model)
        for handler in list(runner.logger.handlers):  # on NFS a folder with an open file cannot be removed
            runner.logger.removeHandler(handler)
            handler.close()
        atomic_io.fingerprint_file(task.work_dir).unlink(missing_ok=True)
        shutil.rmtree(task.work_dir)
        print(f"{folder}: {task.schedule.max_iters} iterations in {seconds:.1f} s, {log.describe_speed()}", flush=True)


@contextmanager
def _explain_errors(task: TrainingTask, params: Params) -> Iterator[None]:
    try:
        with translate_dataloader_errors(params.runtime.num_workers):
            yield
    except SesamError as problem:  # from a worker: the message is the last line of a traceback
        raise SesamError(str(problem).rsplit("SesamError: ", 1)[-1].strip()) from None
    except torch.OutOfMemoryError as problem:
        reason = str(problem).partition("\n")[0].partition(". ")[0]
        raise SesamError(
            f"The GPU's memory does not hold the training of {task.name} ({reason}). Raise "
            "schedule.accumulate, set schedule.checkpoint_activations: true or network.dtype: bfloat16, or lower "
            "schedule.crop_size."
        ) from None
    except RuntimeError as problem:
        network = params.network
        if (network.config is None and network.backbone in RESNETS) or limit_reached(problem) is not None:
            raise
        height, width = task.schedule.crop_size
        own = f"network.config {network.config}" if network.config else f"network.backbone {network.backbone}"
        raise SesamError(
            f"{own} failed on crops of {width}x{height} pixels ({str(problem).partition(chr(10))[0]}). "
            "Some networks need larger ones: schedule.crop_size."
        ) from problem


def _check(task: TrainingTask, params: Params, device: torch.device, manifest: Manifest) -> None:
    """SesamError if the params do not suit the device, or a label file is missing: before hours are spent."""
    batch_size, (_, processes), accumulate = task.schedule.batch_size, get_dist_info(), task.schedule.accumulate
    size = f"params.yaml: the {task.group}'s batch_size is {batch_size}"
    if batch_size % (processes * accumulate):
        raise SesamError(
            f"{size}, which {processes} processes cannot share in {accumulate} parts each. "
            "Set schedule.batch_size to a multiple of runtime.training_gpus × schedule.accumulate."
        )
    if (device.type == "cpu" or accumulate > 1) and batch_size < 2 * processes * accumulate:
        # batch normalization needs two values
        raise SesamError(f"{size}; it must be at least 2 for each of runtime.training_gpus × schedule.accumulate.")
    if params.network.dtype != "float32" and not (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise SesamError("params.yaml: network.dtype bfloat16 needs a GPU that computes in it. Set it to float32.")
    folders = [folder for folder in (task.labels, task.sources) if folder is not None]
    files = [folder / f"{record.id}.png" for folder in folders for record in manifest.train]
    if missing := [file for file in files if not file.exists()]:
        raise SesamError(f"{missing[0]} is missing ({len(missing)} of {len(files)} label files are). Run `dvc repro`.")


def _resume_or_restart(task: TrainingTask) -> None:
    """Keep the unfinished training, unless its inputs have changed or its checkpoint is damaged."""
    atomic_io.resume_or_reset(task.work_dir, stage_fingerprint(task.module.rpartition(".")[2], task.round_name))
    checkpoint = task.work_dir / CheckpointHook.NAME
    if checkpoint.exists() and (damage := atomic_io.find_corruption(checkpoint)):
        print(f"{task.name} is restarting from scratch: {checkpoint} is damaged ({damage})", flush=True)
        checkpoint.unlink()


def initial_network(task: TrainingTask, params: Params, manifest: Manifest, seed: int) -> EncoderDecoder:
    """The network with the three-source loss and its weights before training."""
    config = network_config(params.network, len(manifest.classes))
    weights = [getattr(task.loss_weights, source) for source in SOURCES]
    trainable = {
        "type": f"ThreeSource{config['type']}",
        "train_cfg": {"source_weights": weights},
        "data_preprocessor": training_preprocessor(config, task.schedule.crop_size),
    }
    MMLogger.get_instance("initial", log_level="ERROR")  # init_weights logs every layer
    torch.manual_seed(seed % 2**63)
    model = build(config | trainable)
    model.init_weights()  # in any case: mmengine would do it later, over the weights that are loaded here
    if task.schedule.backbone_lr_mult == 0:
        model.backbone.requires_grad_(False)
    if task.init is not None:
        try:
            model.load_state_dict(load_network(task.init, torch.device("cpu"), manifest.classes).state_dict())
        except RuntimeError:
            raise SesamError(
                f"{task.init} is not the network that params.yaml describes, so it cannot initialize the student. "
                "Set student.init to pretrained, or `network` and `dataset` as they were when it was trained."
            ) from None
        return model
    for conv in find_dilated_depthwise(model.decode_head).values():
        # taps that reach past the crop are never trained; random, they disturb larger images
        middle, others = conv.kernel_size[0] // 2, torch.ones(conv.kernel_size, dtype=torch.bool)
        others[middle, middle] = False
        conv.weight.data[..., others] = 0
    if params.network.pretrained is not None:
        load_pretrained(model.backbone, params.network.pretrained, params.network.sha256)
    return model


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FrozenBackboneConstructor(DefaultOptimWrapperConstructor):
    """mmengine's optimizer, of all but the backbone's weights."""

    def __call__(self, model: nn.Module) -> OptimWrapper:
        children = getattr(model, "module", model).named_children()
        return super().__call__(nn.ModuleDict({name: child for name, child in children if name != "backbone"}))


def optimizer_config(schedule: Schedule, network: NetworkParams) -> dict[str, Any]:
    """mmengine's config of the optimizer; in bfloat16 its wrapper runs the network under autocast.

    Optimizer `config` is that of network.config, with its rates and decays of single layers; SesamError if it has none.
    """
    own = read_config(network)[1] if schedule.optimizer == "config" else OPTIMIZERS[schedule.optimizer]
    if "optimizer" not in own:
        raise SesamError(f"network.config {network.config} has no optimizer. Set schedule.optimizer to adamw or sgd.")
    config = {key: own[key] for key in ("optimizer", "paramwise_cfg", "constructor", "clip_grad") if key in own}
    config["optimizer"] = config["optimizer"] | {"lr": schedule.lr}
    if schedule.backbone_lr_mult == 0:
        config["constructor"] = FrozenBackboneConstructor.__name__
    elif schedule.backbone_lr_mult != 1:
        config["paramwise_cfg"] = {"custom_keys": {"backbone": {"lr_mult": schedule.backbone_lr_mult}}}
    if network.dtype == "float32":
        return config
    # bfloat16 has the range of float32, so nothing needs scaling
    return config | {"type": "AmpOptimWrapper", "dtype": network.dtype, "loss_scale": {"enabled": False}}


def _dataloader(dataset: TrainingDataset, params: Params, device: torch.device) -> DataLoader[Any]:
    batch_size, (rank, processes) = dataset.task.schedule.batch_size, get_dist_info()
    workers = params.runtime.num_workers
    if device.type == "cpu":
        workers = (workers + 1) // 2  # the network computes on every core: each further worker slows it down
    return DataLoader(
        dataset,
        batch_size // processes,
        sampler=ResumableSampler(len(dataset), batch_size, rank, processes),
        num_workers=workers,
        worker_init_fn=exit_on_queue_error,
        collate_fn=collate,
    )


def _scheduler_configs(schedule: Schedule) -> list[dict[str, Any]]:
    """mmengine's configs of the learning rate: a linear warmup, then polynomial decay."""
    warmup = min(WARMUP_ITERS, schedule.max_iters // 10)
    begin = warmup if warmup > 1 else 0  # LinearLR takes its first step from a tenth, and of one step has no second
    rise = {"type": "LinearLR", "start_factor": 0.1, "end": begin}
    decay = {"type": "PolyLR", "power": 0.9, "eta_min": 1e-4 * schedule.lr, "begin": begin, "end": schedule.max_iters}
    return [config | {"by_epoch": False} for config in ([rise, decay] if begin else [decay])]


def _runner_options(task: TrainingTask, params: Params, device: torch.device, model: EncoderDecoder) -> dict[str, Any]:
    """mmengine's Runner without its defaults, which log and save on their own."""
    checkpoint = task.work_dir / CheckpointHook.NAME
    options: dict[str, Any] = {}
    if get_world_size() > 1:
        wrapper = {"broadcast_buffers": False, **({} if device.type == "cuda" else {"device_ids": None})}
        network = params.network  # the others have weights that no head reads, as HRNet's last stages
        wrapper |= {"find_unused_parameters": network.config is not None or network.backbone not in RESNETS}
        options = {"launcher": "pytorch", "cfg": {"model_wrapper_cfg": wrapper, "sync_bn": None}}
    return options | {
        "work_dir": str(task.work_dir / "mmengine"),
        "train_cfg": {
            "type": AccumulatingLoop,
            "max_iters": task.schedule.max_iters,
            "accumulate": task.schedule.accumulate,
        },
        "optim_wrapper": optimizer_config(task.schedule, params.network),
        "param_scheduler": _scheduler_configs(task.schedule),
        "default_hooks": dict.fromkeys(("logger", "checkpoint", "timer", "runtime_info", "sampler_seed")),
        "load_from": str(checkpoint) if checkpoint.exists() else None,
        "resume": checkpoint.exists(),
        "default_scope": "mmseg",
        "experiment_name": f"{task.name}-{time.monotonic_ns()}",
        "randomness": {"seed": 0},  # of no effect: weights, samples and iterations have their own seeds
        "log_level": "ERROR",
    }
