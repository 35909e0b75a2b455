"""The document of the ablations: tables and pictures of what has been run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.ablation_results import Figures, Results
from benchmarks.ablation_rows import KINDS, ONE_ROUND, POINTS, TAUS, UNTAUGHT, Row
from sesam.params import Params, load_params

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def spread(values: Sequence[float | None] | None, digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    known = [value for value in values or () if value is not None]
    if not known or len(known) < len(values or ()):
        return "–"
    return f"{np.mean(known):.{digits}f}" + (f" ± {deviation(known):.{digits}f}" if len(known) > 1 else "")


def deviation(values: list[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


LABEL_HEAD = ("precision", "recall", "mIoU")
ABOUT = ("iterations", "seeds", "commit", "params")


def table(rows: list[Row], found: dict[str, Figures], networks: tuple[str, ...]) -> list[str]:
    """A table of the rows that were run: scores of the last round's labels, mIoU of the networks, at which commit."""
    lines = [
        f"| {' | '.join(['', *(f'labels: {one}' for one in LABEL_HEAD), *networks, *ABOUT])} |",
        "| --- " * (4 + len(networks) + len(ABOUT)) + "|",
    ]
    for row in rows:
        values = found[row.name]
        if values:
            last = last_round(values)
            cells = [row.title, *(spread(values[f"{last} {one}"]) for one in LABEL_HEAD)]
            shown = values if UNTAUGHT not in row.changes else {**values, "teacher": None}
            cells += [spread(shown.get(name)) for name in networks]
            changes = " ".join(row.changes).replace("|", r"\|")
            commits = " ".join(dict.fromkeys(values["commit"]))
            cells += [str(values["iterations"][0]), str(len(values[f"{last} mIoU"])), commits]
            cells.append(f"`{changes}`" if changes else "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def last_round(values: Figures) -> str:
    return [name for name in ("r1", "r2", "r3") if f"{name} mIoU" in values][-1]


MARK = " *"  # behind a comparison of rows that were not run alike


def gains(found: dict[str, Figures]) -> list[str]:
    """A table of what the last student has over others of as many iterations, seed by seed, kind by kind."""
    lines = [
        "| last student of SeSAM | of fine labels, % | above its teacher, points | above the one without SAM, points |",
        "| --- | --- | --- | --- |",
    ]
    for kind in KINDS:
        if values := found[kind]:
            fine, without = found["fine"], found[f"{kind}-no-sam"]
            taught = zip(values[last_round(values)], values["teacher"], strict=True)
            cells = [
                spread([100 * one / other for one, other in of_same_seed(values, fine)], 1),
                spread([100 * (one - other) for one, other in taught], 1),
                spread([100 * (one - other) for one, other in of_same_seed(values, without)], 1),
            ]
            marks = (mark(values, fine), "", mark(values, without))
            marked = [cell + one for cell, one in zip(cells, marks, strict=True)]
            lines.append(f"| {kind} | {' | '.join(marked)} |")
    if any(MARK in line for line in lines):
        lines += ["", r"\* The two rows were run with other code or params, see `commit`."]
    return lines


def of_same_seed(values: Figures, others: Figures) -> list[tuple[float, float]]:
    """A row's last student and another row's first, in pairs; none if their seeds or iterations differ."""
    if any(values[name] != others.get(name) for name in ("seed", "iterations")):
        return []
    return list(zip(values[last_round(values)], others["r1"], strict=True))


def mark(values: Figures, others: Figures) -> str:
    """What stands behind a comparison of two rows."""
    return MARK if of_same_seed(values, others) and not alike(values, others) else ""


def alike(values: Figures, others: Figures) -> bool:
    """Whether two rows were run with the same code and params, but for their changes, as far as it is known."""
    if all(values["current"] + others["current"]):
        return True
    commits, bases = ({*values[name], *others[name]} for name in ("commit", "base"))
    return len(commits) == 1 and len(bases - {""}) <= 1  # older results know no base


def by_class(rows: list[Row], found: dict[str, Figures]) -> list[str]:
    """A table of the IoU of each class of the last round's labels, of the rows of which it is known."""
    known = {row.title: found[row.name] for row in rows if any(" IoU " in name for name in found[row.name])}
    if not known:
        return []
    mark = "r1 IoU "
    classes = [name.removeprefix(mark) for name in next(iter(known.values())) if name.startswith(mark)]
    lines = [f"| IoU of labels | {' | '.join(classes)} |", "| --- " * (1 + len(classes)) + "|"]
    for title, values in known.items():
        cells = [spread(values.get(f"{last_round(values)} IoU {name}")) for name in classes]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return ["By class:", "", *lines, ""]


def preset(params: Params) -> str:
    """The preset that the params are, but for where the data lies and its values for void; or the data set's name."""
    for path in sorted(Path("presets").glob("*.yaml")):
        other = load_params(path)
        there = other.dataset.model_copy(update={"root": params.dataset.root, "ignore": params.dataset.ignore_values})
        same = {"dataset": there, "runtime": params.runtime, "seed": params.seed}
        if other.model_copy(update=same) == params:
            return f"`{path}`"
    return f"params for {Path(params.dataset.root).name}"


def scribble_above(rows: list[Row], found: dict[str, Figures]) -> str:
    """What these rows are to be compared with; said where it was not run as they were."""
    scribble, others = found["scribble"], [found[row.name] for row in rows if found[row.name]]
    differs = scribble and not all(alike(scribble, values) for values in others)
    return "`scribble, SeSAM` above" + (", which was run with other code or params, see `commit`" if differs else "")


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

    def shown(name: str) -> Figures:
        """A row's figures, if it was run as the fine labels' was: marks of rows run otherwise look like the others."""
        values = found.get(name)
        return values if values and alike(values, found["fine"]) else {}

    minutes, fine = params.annotation_minutes, found["fine"].get("r1")
    kinds = [kind for kind in KINDS if getattr(minutes, kind) and fine and shown(kind).get("r2")]
    if fine and kinds and minutes.fine:
        figure, axes = plt.subplots(figsize=(5, 3.2))
        mean, off = float(np.mean(fine)), deviation(fine)
        axes.axhline(mean, color="black", label="fine labels, all images")
        axes.axhspan(mean - off, mean + off, color="black", alpha=0.1)
        drawn: dict[str, list[tuple[str, list[float] | None]]] = {
            "SeSAM": [(kind, found[kind]["r2"]) for kind in kinds],
            "without SAM": [(kind, shown(f"{kind}-no-sam").get("r1")) for kind in kinds],
            "weak labels alone": [(kind, found[kind]["teacher"]) for kind in kinds],
            "fine labels, fewer images": [(kind, shown(f"fine-for-{kind}").get("r1")) for kind in kinds],
        }
        for name, series in drawn.items():
            known = sorted((getattr(minutes, kind) / minutes.fine, kind, values) for kind, values in series if values)
            if known:
                means = [float(np.mean(values)) for *_, values in known]
                bars = [deviation(values) for *_, values in known]
                axes.errorbar([share for share, *_ in known], means, bars, marker="o", capsize=3, label=name)
        axes.set(xscale="log", xlabel="share of the annotation hours of fine labels", ylabel="validation mIoU")
        shares = [getattr(minutes, kind) / minutes.fine for kind in kinds]
        axes.set_xticks(shares, [f"{kind}\n{share:.1%}" for kind, share in zip(kinds, shares, strict=True)])
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
    above = {title: scribble_above(several, found) for title, several in groups.items()}
    lines = [
        "# Supervision levels and ablations",
        "",
        f"Written by `benchmarks/ablations.py` with {preset(params)}, as that was when each row was run. "
        "Networks are judged on validation images (mIoU), the merged labels of a row's last round on training images; "
        "mean ± standard deviation over seeds. "
        "`iterations` are a student's, `commit` is the last that changed the code that a row was run with, `params` "
        "what the row changes.",
        "",
    ]
    about = {
        "Supervision": "`teacher` is the network of the weak labels alone, `r1` and `r2` the students of the rounds.",
        "Steps": f"Scribbles, one round (`{ONE_ROUND}`). To compare with: `r1` of {above['Steps']}.",
        "Other SAMs": f"Scribbles, one round (`{ONE_ROUND}`). To compare with: `r1` of {above['Other SAMs']}.",
        "Training": f"Scribbles. To compare with: {above['Training']}.",
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
        lines += [f"## {title}", "", about[title], "", *table(several, found, networks), ""]
        if title == "Supervision":
            lines += [*gains(found), "", *by_class(several, found)]
    lines += draw(params, found, out)
    if (robustness := out.with_name(f"{out.stem}_robustness.md")).exists():
        lines += ["## Robustness", "", robustness.read_text(encoding="utf-8")]
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"ablations: wrote {out}")
