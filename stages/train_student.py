"""Method, step 6: train a round's student on weak labels, SAM's masks and confident predictions.

python -m stages.train_student ROUND
"""

from sesam.errors import run_main
from sesam.params import NO_TEACHER, parse_round
from sesam.paths import network_dir, pseudo_label_dir
from sesam.segmentation.data import TrainingTask
from sesam.segmentation.training import train


def main() -> None:
    round_name, params = parse_round(__doc__.splitlines()[0])
    teacher, folder = params.rounds[round_name].teacher, pseudo_label_dir(round_name)
    labels_all = teacher != NO_TEACHER or params.sampling.prompt_type == "concept"  # also images without annotation
    task = TrainingTask(
        module="stages.train_student",
        labels=folder / "labels",
        schedule=params.schedule_of("student"),
        loss_weights=params.student.loss_weights,
        round_name=round_name,
        sources=folder / "sources",
        sam_sample_prob=params.student.sam_sample_prob,
        unannotated_ratio=params.student.unannotated_ratio if labels_all else 0,
        init=network_dir(teacher) if params.student.init == "teacher" and teacher != NO_TEACHER else None,
    )
    train(task, params)


if __name__ == "__main__":
    run_main(main)
