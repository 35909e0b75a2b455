"""Around the iterations of a training: seeds, the log, checkpoints."""

import math
import sqlite3
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from dvclive import Live
from mmengine.dist import all_reduce_dict, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sesam.artifacts.atomic_io import atomic_path
from sesam.errors import SesamError
from sesam.execution.progress import ProgressBar
from sesam.paths import training_log_dir
from sesam.seeds import seed_of
from sesam.segmentation.data import TrainingTask
from sesam.segmentation.loss import SOURCES

LOG_INTERVAL = 10  # iterations
CHECKPOINT_SECONDS = 120
ANNOUNCED_SECONDS = 300


class LoggingHook(Hook):
    """Seeds each iteration, so that dropout too is a function of (seed, iteration); shows and logs the losses.

    Checkpoints contain the log; a resumed training writes it again.
    """

    def __init__(self, task: TrainingTask, seed: int, bar: ProgressBar) -> None:
        self.task, self.seed, self.bar = task, seed, bar
        self.rows: list[tuple[int, dict[str, float]]] = []  # iterations done, and their metrics
        self.sums: dict[str, torch.Tensor] = {}  # of the losses since the last row
        self.counts: dict[str, torch.Tensor] = {}  # the iterations that had them
        self.first, self.started, self.ended, self.waited = 0, 0.0, 0.0, 0.0  # iteration; seconds

    def before_train(self, runner: Runner) -> None:
        self.bar.initial = self.bar.n = self.first = runner.iter
        if is_main_process():
            self._open_log()
        self.started = self.ended = time.monotonic()

    def _open_log(self) -> None:
        try:
            self.live = Live(str(training_log_dir(self.task.network)), dvcyaml=False, save_dvc_exp=False)
        except sqlite3.Error as problem:
            raise SesamError(f"DVC's database cannot be written ({problem}). Is the disk full?") from None
        for row in self.rows:
            self._write(*row)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self.waited += time.monotonic() - self.ended
        process = (get_rank(),) if get_rank() else ()
        torch.manual_seed(seed_of(self.seed, "iteration", batch_idx, *process) % 2**63)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: Any = None) -> None:
        for name, value in outputs.items():  # on the device: reading them would make a GPU wait for the next batch
            absent = value.isnan() & (name in SOURCES)
            self.sums[name] = self.sums.get(name, 0) + value.detach().masked_fill(absent, 0)
            self.counts[name] = self.counts.get(name, 0) + ~absent
        self.bar.update()
        self.ended = time.monotonic()
        if (batch_idx + 1) % LOG_INTERVAL:
            return
        self._check(batch_idx)
        all_reduce_dict(self.sums, "mean")
        means = {name: float(value / self.counts[name]) for name, value in self.sums.items()}  # NaN without any
        row = {"loss": means["loss"], "learning_rate": runner.optim_wrapper.get_lr()["lr"][-1]}  # of the heads
        if self.task.sources is not None:
            row |= {f"loss_{source}": means[source] for source in SOURCES if self.counts[source]}
        self.bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        self.rows.append((batch_idx + 1, row))
        self.sums, self.counts = {}, {}
        if is_main_process():
            self._write(batch_idx + 1, row)
            if batch_idx + 1 == self.first + LOG_INTERVAL:
                self._announce()

    def _announce(self) -> None:
        """What the training will take, for who would rather stop it now."""
        left = (self.ended - self.started) / LOG_INTERVAL * (self.task.schedule.max_iters - self.bar.n)
        if left > ANNOUNCED_SECONDS:
            end = datetime.now() + timedelta(seconds=left)
            self.bar.write(f"{self.task.name}: {self.describe_speed()}; done about {end:%b %d, %H:%M}", sys.stderr)

    def _check(self, last: int) -> None:
        """SesamError if a loss since the last row, up to iteration index `last`, was not finite."""
        if self.sums and not math.isfinite(loss := float(self.sums["loss"])):
            first = last - last % LOG_INTERVAL
            raise SesamError(
                f"{self.task.name} has diverged: the losses of iterations {first + 1} to {last + 1} add up to {loss}. "
                f"Lower {self.task.group}.lr, or schedule.lr for both networks; it was {self.task.schedule.lr:g}."
            )

    def describe_speed(self) -> str:
        """Images a second, the share of the time in which no batch was ready, and the memory of a GPU."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        images = (self.bar.n - self.first) * self.task.schedule.batch_size
        text = f"{images / seconds:.3g} images/s, {self.waited / seconds:.0%} of the time waiting for data"
        if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
            text += f", {peak / 2**30:.1f} GiB of GPU memory"
        return text

    def after_train(self, runner: Runner) -> None:
        self._check(runner.iter - 1)
        if is_main_process():
            self.live.end()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["rows"] = self.rows

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.rows = checkpoint["rows"]

    def _write(self, step: int, row: dict[str, float]) -> None:
        self.live.step = step
        for name, value in row.items():
            self.live.log_metric(name, value)
        self.live.make_summary()


class CheckpointHook(Hook):
    """mmengine's checkpoint every CHECKPOINT_SECONDS, after an iteration that was logged."""

    priority = "VERY_LOW"  # after the scheduler's step
    NAME = "checkpoint.pth"

    def __init__(self, work_dir: Path) -> None:
        self.path = work_dir / self.NAME
        self.last = time.monotonic()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: Any = None) -> None:
        if (batch_idx + 1) % LOG_INTERVAL or time.monotonic() - self.last < CHECKPOINT_SECONDS or not is_main_process():
            return
        with atomic_path(self.path) as unfinished:
            runner.save_checkpoint(str(unfinished.parent), unfinished.name, by_epoch=False)
        self.last = time.monotonic()
