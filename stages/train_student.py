"""Method, step 6: the student of a round, trained on weak labels, SAM's masks and confident predictions.

python -m stages.train_student ROUND
"""

from __future__ import annotations

from pathlib import Path

from sesam.command_line import round_of_command_line
from sesam.errors import run_stage
from sesam.params import NO_TEACHER
from sesam.paths import pseudo_labels
from sesam.segmentation.training import Task, train


def main() -> None:
    name, params = round_of_command_line(__doc__.splitlines()[0])
    teacher = params.rounds[name].teacher
    train(
        Task(
            name=f"student-{name}",
            stage="train_student",
            round=name,
            labels=pseudo_labels(name) / "labels",
            sources=pseudo_labels(name) / "sources",
            schedule=params.student,
            loss=params.student.loss,
            sam_frequency=params.student.sam_frequency,
            start=Path(teacher) if params.student.start == "teacher" and teacher != NO_TEACHER else None,
        ),
        params,
    )


if __name__ == "__main__":
    run_stage(main)
