"""Train the baseline: a network on the annotators' labels alone.

python -m stages.train_baseline
"""

from sesam.artifacts.manifest import Manifest
from sesam.artifacts.supervision import load_supervision
from sesam.errors import SesamError, run_main
from sesam.params import LossWeights, load_params
from sesam.paths import WEAK_LABELS
from sesam.segmentation.data import TrainingTask
from sesam.segmentation.training import train


def main() -> None:
    params = load_params()
    if {*load_supervision(Manifest.load().train).values()} == {"none"}:
        raise SesamError(
            "No training image has an annotation, and the baseline learns from nothing else. With concepts as prompts, "
            "train a student alone: rounds.r1.teacher none, rounds.r1.fill_confident false, `dvc repro evaluate@r1`."
        )
    schedule, loss_weights = params.schedule_of("baseline"), LossWeights(sam=0.0, confident=0.0)
    train(TrainingTask("stages.train_baseline", WEAK_LABELS, schedule, loss_weights), params)


if __name__ == "__main__":
    run_main(main)
