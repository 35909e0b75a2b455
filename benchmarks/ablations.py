"""Supervision levels and ablations: queued as DVC experiments, run, and written to docs/ablations.md.

    make ablations                              # everything: hours on a CPU
    make ablations ROWS="fine scribble" SEEDS="0 1"
    python -m benchmarks.ablations --jobs 2     # two experiments side by side, each on half of the cores
    python -m benchmarks.ablations --rows sam-sam2 --weights sam2=/models/sam2.1-hiera-large/model.safetensors
    python -m benchmarks.ablations --out docs/idd.md       # of another data set, whose preset is params.yaml

Every row is params.yaml with a few changes, for each seed one experiment. What was found is kept in
docs/ablations.json (benchmarks/ablation_results.py): experiments that were run with the same code and params, here or
where that file was committed, are not run again, and of the others DVC's run cache repeats only the stages that a row
changes. Stopped, it goes on where it was. The tables hold whatever has been run, and say at which commit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.ablation_results import RESULTS, Figures, Results, Row, git
from stages.common.errors import SesamError, run_stage
from stages.common.files import sha256
from stages.common.params import Params, load_params
from stages.sam.models import MODELS

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

KINDS = ("coarse", "scribble", "point")
SCRIBBLE = "weak.kind=scribble"
ONE_ROUND = "~rounds.r2"
UNTAUGHT = "teacher.iterations=10"  # where the teacher is no part of the row
LABELS_ALONE = "evaluate_labels@r1"  # the stage to stop at where no network need be trained
TEACHER = "rounds.r1.teacher=models/teacher"  # of the weak labels; it prompts
LABELLING = "rounds.r1.labels=true"  # and labels
TAUS = ((0.1, 0.9), (0.3, 0.7), (0.5, 0.5), (0.7, 0.3))  # the paper's
POINTS = (1, 3, 5, 7, 9)
STRATEGIES = ("random", "confident", "deepest")


def supervision(params: Params) -> list[Row]:
    """What annotators draw, and what the pipeline makes of it."""
    fine = ("weak.kind=fine", "merging.sam=false", UNTAUGHT, ONE_ROUND)
    rows = [Row("fine", "fine labels", fine)]
    minutes = params.evaluation.minutes
    for kind in KINDS:
        weak = f"weak.kind={kind}"
        rows += [
            Row(kind, f"{kind}, SeSAM", (weak,)),
            Row(
                f"{kind}-no-sam",
                f"{kind} without SAM: weak labels and their teacher's confident predictions",
                (weak, "merging.sam=false", TEACHER, LABELLING, ONE_ROUND),
            ),
        ]
        if minutes.fine and (each := getattr(minutes, kind)):
            share = each / minutes.fine
            title = f"fine labels of the {share:.1%} of the images that the hours of {kind} pay for"
            rows.append(Row(f"fine-for-{kind}", title, (*fine, f"dataset.subset={share:.4f}")))
    return rows


def steps() -> list[Row]:
    """One step of the first round changed, its student trained."""
    changes = {
        "no-separation": ("without separation, a prompt a class", "components.separate=false"),
        "no-selection": (
            "without selection, the best predicted IoU",
            "selection.tau_mask=0",
            "selection.tau_weak=0",
            "selection.max_conflict=1",
        ),
        "box": ("boxes as prompts", "sampling.prompt=box"),
        "mask": ("masks as prompts", "sampling.prompt=mask"),
        "superpixels": ("superpixels in the place of SAM", "sam.model=superpixels"),
        "weak-teacher": ("a teacher of the weak labels, which prompts", TEACHER),
        "weak-teacher-labels": ("a teacher of the weak labels, which prompts and labels", TEACHER, LABELLING),
    }
    return [Row(name, title, (SCRIBBLE, *params, ONE_ROUND)) for name, (title, *params) in changes.items()]


def other_sams(files: Mapping[str, Path]) -> list[Row]:
    """Other models in the first round, where their weights can be had; files: those of models that are not fetched."""
    rows = []
    for name, model in MODELS.items():
        weights: tuple[str, ...] = ()
        if name in files:
            weights = (f"sam.checkpoint={files[name].absolute()}", f"sam.sha256={sha256(files[name])}")
        if model.checkpoint or "://" in (model.address or ""):
            rows.append(Row(f"sam-{name}", f"sam.model {name}", (SCRIBBLE, f"sam.model={name}", *weights, ONE_ROUND)))
    return rows


def weights_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in MODELS or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no MODEL=FILE; models are {', '.join(MODELS)}")
    return name, Path(path)


def training() -> list[Row]:
    """Rounds, and how the student is trained; two rounds unless said."""
    third = "+rounds.r3={teacher: models/student/r2, labels: false}"
    return [
        Row("three-rounds", "a third round", (SCRIBBLE, third)),
        Row("labelling", "confident predictions label pixels too", (SCRIBBLE, "rounds.r2.labels=true")),
        Row("start-teacher", "students start from their teacher's weights", (SCRIBBLE, "student.start=teacher")),
        Row("frequency-0", "SAM's pixels in no training sample", (SCRIBBLE, "student.sam_frequency=0")),
        Row("frequency-0.5", "SAM's pixels in half of the samples", (SCRIBBLE, "student.sam_frequency=0.5")),
    ]


def labels() -> list[Row]:
    """Changes to the first round's labels alone."""

    def row(name: str, title: str, *changes: str) -> Row:
        return Row(name, title, (SCRIBBLE, *changes, ONE_ROUND), LABELS_ALONE)

    taught = "a teacher of the weak labels"  # the confident strategy and τ1 are about its predictions
    rows = [row(f"points-{n}", f"N = {n}", f"sampling.num_points={n}") for n in POINTS]
    for strategy in STRATEGIES:
        rows.append(
            row(f"strategy-{strategy}", f"{strategy} points, {taught}", f"sampling.strategy={strategy}", TEACHER)
        )
    for one, two in TAUS:
        thresholds = (f"selection.tau_mask={one}", f"selection.tau_weak={two}")
        rows.append(row(f"tau-{one}-{two}", f"τ1 = {one}, τ2 = {two}, {taught}", *thresholds, TEACHER))
    return rows


def check(params: Params) -> None:
    """SesamError where the rows would not mean what they say, or could not be run."""
    decisive = ("dvc.yaml", "models/embedded_sam.pth", "params.yaml", "stages")
    if dirty := git("status", "--porcelain", "--", *decisive):
        raise SesamError(f"Commit your changes first, for the tables say what they were made of:\n{dirty}")
    if list(params.rounds) != ["r1", "r2"]:
        raise SesamError("params.yaml: the ablations are of rounds r1 and r2; rounds must have these two.")
    if params.weak.origin != "data/fine/train":
        raise SesamError(
            "params.yaml: the ablations compare weak labels drawn from fine ones: weak.origin must be data/fine/train."
        )
    if params.dataset.subset is not None and params.evaluation.minutes.fine:
        raise SesamError(
            "params.yaml: the ablations compare with fine labels of a share of all images, by evaluation.minutes: "
            "dataset.subset must be null."
        )
    made = {f"data/raw/{name}" for name in params.draw}
    paths = {"dataset.root": params.dataset.root, "sam.checkpoint": params.sam.checkpoint}
    for key, path in paths.items():
        if path is None or Path(path).is_absolute():
            continue
        if path not in made and not git("ls-files", "--", path, f"{path}.dvc"):
            raise SesamError(
                f"params.yaml: {key} is {path}, which neither git nor DVC tracks; experiments run in folders of "
                "their own and would not find it. Give an absolute path."
            )


def dvc(*command: str) -> str:
    """Run a dvc command; SesamError with its output if it fails."""
    done = subprocess.run(("dvc", *command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SesamError(f"dvc {' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def queued() -> dict[str, str]:
    """The state of each named experiment in DVC's queue."""
    rows = [line.split() for line in dvc("queue", "status").splitlines()]
    return {row[1]: row[-1] for row in rows if len(row) >= 5 and row[-1] in ("Queued", "Running", "Failed", "Success")}


def run_missing(rows: list[Row], seeds: list[int], jobs: int, results: Results) -> None:
    """Queue and run what has not been run; SesamError if an experiment fails."""

    def still_missing() -> dict[str, tuple[Row, int]]:
        results.collect(rows)
        results.save()
        every = [(row, seed) for row in rows for seed in seeds]
        return {f"{row.name}-s{seed}": (row, seed) for row, seed in every if not results.is_current(row, seed)}

    missing = still_missing()
    print(f"ablations: {len(missing)} of {len(rows) * len(seeds)} experiments to run", flush=True)
    if not missing:
        return
    states = queued()
    if busy := [name for name, state in states.items() if state == "Running"]:
        raise SesamError(f"{', '.join(busy)} still run. Wait, or stop them with `dvc queue stop --kill`.")
    if left := [name for name, state in states.items() if name in missing and state != "Success"]:
        dvc("queue", "remove", *left)
    environment = dict(os.environ)
    workers = []
    if jobs > 1:
        cores = max(1, (os.cpu_count() or 1) // jobs)
        environment |= {"OMP_NUM_THREADS": str(cores)}
        workers = ["-S", f"runtime.workers={cores}"]
    for name, (row, seed) in missing.items():
        changes = [part for change in (*row.changes, f"seed={seed}") for part in ("-S", change)]
        dvc("exp", "run", "--queue", "-n", name, *changes, *workers, *([row.target] if row.target else []))
    try:
        subprocess.run(("dvc", "exp", "run", "--run-all", "-j", str(jobs)), env=environment, check=False)
    except KeyboardInterrupt:
        dvc("queue", "stop", "--kill")  # DVC's own workers would go on
        raise
    if failed := still_missing():
        raise SesamError(f"{', '.join(failed)} failed: see `dvc queue logs NAME`. The others are kept.")


def spread(values: list[float] | None) -> str:
    """Mean ± standard deviation over seeds."""
    if not values or None in values:
        return "–"
    return f"{np.mean(values):.3f}" + (f" ± {deviation(values):.3f}" if len(values) > 1 else "")


def deviation(values: list[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


LABEL_HEAD = ("precision", "recall", "mIoU")


def table(rows: list[Row], found: dict[str, Figures], commits: dict[str, str], networks: tuple[str, ...]) -> list[str]:
    """A table of the rows that were run: scores of the last round's labels, mIoU of the networks, at which commit."""
    lines = [
        f"| {' | '.join(['', *(f'labels: {one}' for one in LABEL_HEAD), *networks, 'seeds', 'commit', 'params'])} |",
        "| --- " * (7 + len(networks)) + "|",
    ]
    for row in rows:
        values = found[row.name]
        if values:
            last = [name for name in ("r1", "r2", "r3") if f"{name} mIoU" in values][-1]
            cells = [row.title, *(spread(values[f"{last} {one}"]) for one in LABEL_HEAD)]
            shown = values if UNTAUGHT not in row.changes else {**values, "teacher": None}
            cells += [spread(shown.get(name)) for name in networks]
            changes = " ".join(row.changes).replace("|", r"\|")
            cells += [str(len(values[f"{last} mIoU"])), commits[row.name], f"`{changes}`" if changes else ""]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(params: Params, found: dict[str, Figures], out: Path) -> list[str]:
    """The pictures of the rows that were run; their lines in the document."""
    lines = []

    def save(figure: Figure, name: str, title: str) -> None:
        figure.tight_layout()
        figure.savefig(out.with_name(f"{out.stem}_{name}.png"), dpi=110)
        plt.close(figure)
        lines.extend([f"![{title}]({out.stem}_{name}.png)", ""])

    sweeps = {
        "points": ("points a prompt, N", [(str(n), f"points-{n}") for n in POINTS]),
        "thresholds": ("(τ1, τ2)", [(f"({one}, {two})", f"tau-{one}-{two}") for one, two in TAUS]),
    }
    for name, (axis, marks) in sweeps.items():
        if all(found[row] for _, row in marks):
            figure, axes = plt.subplots(figsize=(5, 3.2))
            for measure in ("precision", "recall"):
                values = [found[row][f"r1 {measure}"] for _, row in marks]
                bars = [deviation(one) for one in values]
                axes.errorbar(
                    [mark for mark, _ in marks],
                    [np.mean(one) for one in values],
                    bars,
                    marker="o",
                    capsize=3,
                    label=measure,
                )
            axes.set(xlabel=axis, ylabel="merged labels of round 1")
            axes.legend()
            save(figure, name, f"Precision and recall over {axis}")

    minutes, fine = params.evaluation.minutes, found["fine"].get("r1")
    kinds = [kind for kind in KINDS if getattr(minutes, kind) and found[kind].get("r2")]
    if fine and kinds and minutes.fine:
        figure, axes = plt.subplots(figsize=(5, 3.2))
        mean, off = float(np.mean(fine)), deviation(fine)
        axes.axhline(mean, color="black", label="fine labels, all images")
        axes.axhspan(mean - off, mean + off, color="black", alpha=0.1)
        drawn: dict[str, list[tuple[str, list[float] | None]]] = {
            "SeSAM": [(kind, found[kind]["r2"]) for kind in kinds],
            "without SAM": [(kind, found[f"{kind}-no-sam"].get("r1")) for kind in kinds],
            "weak labels alone": [(kind, found[kind]["teacher"]) for kind in kinds],
            "fine labels, fewer images": [
                (kind, found[f"fine-for-{kind}"].get("r1")) for kind in kinds if f"fine-for-{kind}" in found
            ],
        }
        for name, series in drawn.items():
            known = sorted((getattr(minutes, kind) / minutes.fine, kind, values) for kind, values in series if values)
            if known:
                means = [float(np.mean(values)) for *_, values in known]
                bars = [deviation(values) for *_, values in known]
                axes.errorbar([share for share, *_ in known], means, bars, marker="o", capsize=3, label=name)
        for kind in kinds:
            axes.annotate(
                kind,
                (getattr(minutes, kind) / minutes.fine, np.mean(found[kind]["r2"])),
                (0, 6),
                textcoords="offset points",
                ha="center",
            )
        axes.set(xscale="log", xlabel="share of the annotation hours of fine labels", ylabel="validation mIoU")
        shares = [getattr(minutes, kind) / minutes.fine for kind in kinds]
        axes.set_xticks(shares, [f"{share:.1%}" for share in shares])
        axes.minorticks_off()
        axes.margins(0.15)
        axes.legend(fontsize=7)
        save(figure, "hours", "mIoU over annotation hours")
    return lines


def write(params: Params, groups: dict[str, list[Row]], results: Results, out: Path) -> None:
    """The document `out` and its pictures."""
    rows = [row for several in groups.values() for row in several]
    results.collect(rows)
    results.save()
    found = {row.name: results.figures(row) for row in rows}
    commits = {row.name: results.commit(row) for row in rows}
    data = Path(params.dataset.root).name
    lines = [
        "# Supervision levels and ablations",
        "",
        f"Written by `make ablations` on {data}: students of {params.student.iterations} iterations each, the network "
        f"of the weak labels alone (`teacher`) of {params.teacher.iterations}. Networks are judged on validation "
        "images (mIoU), the merged labels of a row's last round on training images; mean ± standard "
        "deviation over seeds. `commit` is that whose code and params a row was run with.",
        "",
    ]
    about = {
        "Supervision": "`teacher` is the network of the weak labels alone, `r1` and `r2` the students of the rounds.",
        "Steps": f"Scribbles, one round (`{ONE_ROUND}`). To compare with: `r1` of `scribble, SeSAM` above.",
        "Other SAMs": f"Scribbles, one round (`{ONE_ROUND}`). To compare with: `r1` of `scribble, SeSAM` above.",
        "Training": "Scribbles. To compare with: `scribble, SeSAM` above.",
        "Labels": "Scribbles, labels of round 1, no network trained on them.",
    }
    for title, several in groups.items():
        if not any(found[row.name] for row in several):
            continue
        networks = {
            "Supervision": ("teacher", "r1", "r2"),
            "Steps": ("r1",),
            "Other SAMs": ("r1",),
            "Training": ("r1", "r2", "r3"),
        }.get(title, ())
        lines += [f"## {title}", "", about[title], "", *table(several, found, commits, networks), ""]
    lines += draw(params, found, out)
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"ablations: wrote {out}")


def main() -> None:
    params = load_params()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these alone; all but other SAMs, if not given")
    parser.add_argument(
        "--weights", nargs="+", type=weights_file, default=[], metavar="MODEL=FILE", help="of other SAMs"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="experiments side by side")
    parser.add_argument("--out", type=Path, default=RESULTS.with_suffix(".md"), help="with NAME.json beside it")
    parser.add_argument("--write-only", action="store_true", help="write the tables of what has been run")
    options = parser.parse_args()
    groups = {"Supervision": supervision(params), "Steps": steps(), "Training": training(), "Labels": labels()}
    usual = [row for rows in groups.values() for row in rows]
    groups["Other SAMs"] = other_sams(dict(options.weights))
    known = {row.name: row for rows in groups.values() for row in rows}
    if unknown := set(options.rows or ()) - known.keys():
        parser.error(f"no row {', '.join(sorted(unknown))}; rows are {', '.join(sorted(known))}")
    check(params)
    results = Results.load(options.out.with_suffix(".json"))
    if not options.write_only:
        chosen = usual if options.rows is None else [known[name] for name in options.rows]
        run_missing(chosen, options.seeds, options.jobs, results)
    write(params, groups, results, options.out)


if __name__ == "__main__":
    run_stage(main)
