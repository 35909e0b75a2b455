"""mmengine's Runner for these trainings: gradients in parts of a batch, and nothing that writes logs of its own."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner

from sesam.segmentation.data import split
from sesam.segmentation.loss import count_pixels, stack_labels


class TrainingRunner(Runner):
    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Collect no versions of compilers for a log that is not written; it takes two seconds."""

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Nothing is drawn, so Matplotlib is not imported; it takes a second."""
        return SimpleNamespace(add_config=lambda config: None)


class AccumulatingLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, each of which adds up the gradients of `accumulate` parts of its batch.

    mmengine's own accumulative_counts would make iterations of the parts: in the log, the schedule and checkpoints.
    """

    def __init__(self, *args: Any, accumulate: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accumulate = accumulate

    def run_iter(self, data_batch: Any) -> None:
        """An iteration with its hooks. data_batch: as `collate` makes it, of a multiple of `accumulate`."""
        runner, iteration = self.runner, {"batch_idx": self._iter, "data_batch": data_batch}
        runner.call_hook("before_train_iter", **iteration)
        outputs = train_in_parts(runner.model, split(data_batch), runner.optim_wrapper, self.accumulate)
        runner.call_hook("after_train_iter", **iteration, outputs=outputs)
        self._iter += 1


def train_in_parts(model: Any, data: Any, optim_wrapper: OptimWrapper, accumulate: int) -> dict[str, torch.Tensor]:
    """A step on the gradient of a batch's loss, whose parts are computed one after the other; returns what is logged.

    A part's loss is its share of the batch's: sources count by their pixels in the whole batch.
    """
    if accumulate == 1:
        logged: dict[str, torch.Tensor] = model.train_step(data, optim_wrapper)
        return logged
    module = model.module if is_model_wrapper(model) else model
    data = module.data_preprocessor(data, training=True)
    module.batch_pixels = count_pixels(*stack_labels(data["data_samples"]))
    size, totals = len(data["data_samples"]) // accumulate, dict[str, Any]()
    for start in range(0, size * accumulate, size):
        part = slice(start, start + size)
        is_last = start + size == size * accumulate
        with nullcontext() if is_last or module is model else model.no_sync(), optim_wrapper.optim_context(model):
            losses = model(data["inputs"][part], data["data_samples"][part], mode="loss")
        loss, logged = module.parse_losses(losses)
        optim_wrapper.backward(loss)
        totals = {name: totals.get(name, 0) + value.detach() for name, value in logged.items()}
    module.batch_pixels = None
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return totals
