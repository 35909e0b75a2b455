"""The last student's training on fine labels: how far weak labels are from full supervision.

    python -m benchmarks.upper_bound     (after `dvc repro`)

Trains the student's network with the student's schedule on data/fine/train, for as many
iterations as the last student and the networks that it started from had together, and
prints its validation mIoU beside those of the pipeline. No stage reads its result.
"""

from __future__ import annotations

from pathlib import Path

from stages.common.dataset import Dataset, item_label
from stages.common.device import pick_device
from stages.common.errors import run_stage
from stages.common.files import read_json
from stages.common.labels import read_image
from stages.common.params import LossWeights, Params, load_params
from stages.evaluate import confusion, network_scores
from stages.segmentation.network import load_network, predict
from stages.segmentation.training import Task, train

MODEL = Path("models/.work/upper_bound_network")


def iterations(params: Params, name: str) -> int:
    """How many a round's student had, with those of the networks that it started from."""
    own = params.student.iterations
    if params.student.start == "initial":
        return own
    earlier = params.rounds[name].teacher.removeprefix("models/student/")
    return own + (iterations(params, earlier) if earlier in params.rounds else params.teacher.iterations)


def main() -> None:
    params, data = load_params(), Dataset.load()
    one_source = LossWeights(weak=1.0, sam=0.0, confident=0.0)
    labels, metrics = Path("data/fine/train"), MODEL / "metrics"
    schedule = params.student.model_copy(update={"iterations": iterations(params, list(params.rounds)[-1])})
    train(Task("upper_bound", MODEL, metrics, labels, None, schedule, one_source, 0.0), params)
    device = pick_device(params.runtime)
    network = load_network(MODEL, device)
    total = sum(
        confusion(
            item_label("data/fine/val", item),
            predict(network, read_image(Path(item.image)), device)[0],
            len(data.classes),
        )
        for item in data.val
    )
    pipeline = read_json(Path("metrics/evaluation.json"))
    rows = {"teacher": pipeline["teacher"], **{f"student {r}": s for r, s in pipeline["student"].items()}}
    for name, scores in (rows | {"fine labels": network_scores(total)}).items():
        print(f"{name:12} mIoU {scores['mIoU']}  pixel accuracy {scores['pixel_accuracy']}")


if __name__ == "__main__":
    run_stage(main)
