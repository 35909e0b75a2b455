"""What a network is trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sesam.params import WEAK_LABEL_TEACHER, LossWeights, Schedule
from sesam.paths import network_dir, training_log_dir

WORK = Path("models/.work")


@dataclass(frozen=True)
class TrainingTask:
    """module: the stage's, for `python -m` in each process of a distributed training. round_name: None for the teacher.

    sources: None if every labeled pixel is weakly labeled. init: folder of the trained network that it starts from;
    None for `network.pretrained`.
    """

    module: str
    round_name: str | None
    labels: Path
    sources: Path | None
    schedule: Schedule
    loss_weights: LossWeights
    sam_frequency: float
    init: Path | None = None

    @property
    def stage(self) -> str:
        """As dvc.yaml names it."""
        return self.module.rpartition(".")[2]

    @property
    def group(self) -> Literal["teacher", "student"]:
        """The group of params.yaml that overrides `schedule`."""
        return "student" if self.round_name else "teacher"

    @property
    def name(self) -> str:
        """Shown in messages, seeds the training and names its unfinished work."""
        return f"student-{self.round_name}" if self.round_name else "teacher"

    @property
    def model_dir(self) -> Path:
        return network_dir(self.round_name or WEAK_LABEL_TEACHER)

    @property
    def log_dir(self) -> Path:
        return training_log_dir(self.round_name or WEAK_LABEL_TEACHER)

    @property
    def work_dir(self) -> Path:
        """The unfinished training: checkpoint and mmengine's files."""
        return WORK / self.name
