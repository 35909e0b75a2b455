"""Method, step 6: the student of a round, trained on weak labels, SAM's masks and confident predictions.

python -m stages.train_student ROUND
"""

from __future__ import annotations

from sesam.errors import run_main
from sesam.params import NO_TEACHER, parse_round
from sesam.paths import network_dir, pseudo_label_dir
from sesam.segmentation.training import TrainingTask, train


def main() -> None:
    name, params = parse_round(__doc__.splitlines()[0])
    teacher = params.rounds[name].teacher
    train(
        TrainingTask(
            name=f"student-{name}",
            stage="train_student",
            round=name,
            labels=pseudo_label_dir(name) / "labels",
            sources=pseudo_label_dir(name) / "sources",
            schedule=params.schedule_of("student"),
            loss=params.student.loss_weights,
            sam_frequency=params.student.sam_frequency,
            init=network_dir(teacher) if params.student.init == "teacher" and teacher != NO_TEACHER else None,
        ),
        params,
    )


if __name__ == "__main__":
    run_main(main)
