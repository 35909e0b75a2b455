"""Method, step 6: the student of a round, trained on weak labels, SAM's masks and confident predictions.

python -m stages.train_student ROUND
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.common.errors import run_stage
from stages.common.params import load_params, pick_round
from stages.segmentation.training import Task, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("round", help="a key of `rounds` in params.yaml")
    name = parser.parse_args().round
    params = load_params()
    pick_round(params, name)
    pseudo_labels = Path("data/pseudo_labels", name)
    train(
        Task(
            name=f"student-{name}",
            model=Path("models/student", name),
            metrics=Path("metrics/training/student", name),
            labels=pseudo_labels / "labels",
            sources=pseudo_labels / "sources",
            schedule=params.student,
            loss=params.student.loss,
            sam_frequency=params.student.sam_frequency,
        ),
        params,
    )


if __name__ == "__main__":
    run_stage(main)
