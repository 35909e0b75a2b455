"""The results page of the ablations: tables and charts, each of one version of code and params."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.ablation_results import Figures, Results
from benchmarks.ablation_rows import BUDGETS, KINDS, POINTS, SHORT_BASELINE, TAUS, TITLES, Row
from sesam.params import KINDS as ALL_KINDS
from sesam.params import Params
from sesam.presets import PRESETS, load_preset
from sesam.reporting.tables import annotation_hours

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

Found = Mapping[str, Figures]  # by row


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; a dash if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "–"
    return f"{np.mean(known):.{digits}f}" + (f" ± {deviation(known):.{digits}f}" if len(known) > 1 else "")


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def last_round(figures: Figures) -> str:
    return [name for name in ("r1", "r2", "r3") if f"{name} mIoU" in figures][-1]


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def score_table(rows: Sequence[Row], found: Found, networks: Sequence[str], labels_of: str | None = None) -> list[str]:
    """Scores of the labels and mIoU of the networks, per row that was run. labels_of: a round; None: the last."""
    scores = ("precision", "recall", "mIoU")
    head = ["", *(f"labels: {score}" for score in scores), *(f"{name}: val mIoU" for name in networks), "params"]
    lines = []
    for row in (row for row in rows if found[row.name]):
        figures = found[row.name]
        cells = [row.title, *(spread(figures[f"{labels_of or last_round(figures)} {score}"]) for score in scores)]
        trained = {name for name in networks if name != "baseline" or SHORT_BASELINE not in row.changes}
        cells += [spread(figures.get(name, ()) if name in trained else ()) for name in networks]
        lines.append([*cells, f"`{' '.join(row.changes)}`".replace("|", r"\|")])
    return _markdown(head, lines)


def gain_table(found: Found) -> list[str]:
    """What the last student gains over others with as many iterations, per kind, over the seeds that both have."""
    head = ["SeSAM's student", "of fine labels, %", "above the baseline, points", "above no SAM, points"]
    lines = []
    for kind in (kind for kind in KINDS if found[kind]):
        student = found[kind][last_round(found[kind])]
        pairs = {name: _pairs(found[kind], found[name]) for name in ("fine", f"{kind}-no-sam")}
        above_baseline = [100 * (a - b) for a, b in zip(student, found[kind]["baseline"], strict=True) if a and b]
        of_fine = [100 * ours / other for ours, other in pairs["fine"]]
        above_no_sam = [100 * (ours - other) for ours, other in pairs[f"{kind}-no-sam"]]
        lines.append([kind, spread(of_fine, 1), spread(above_baseline, 1), spread(above_no_sam, 1)])
    return _markdown(head, lines)


def _pairs(figures: Figures, others: Figures) -> list[tuple[float, float]]:
    """A row's last student and another row's first, seed by seed; none if seeds or iterations differ."""
    if any(figures[name] != others.get(name) for name in ("seed", "max_iters")):
        return []
    pairs = zip(figures[last_round(figures)], others["r1"], strict=True)
    return [(ours, other) for ours, other in pairs if ours is not None and other is not None]


def class_table(rows: Sequence[Row], found: Found) -> list[str]:
    """IoU per class of the last round's labels."""
    known = {  # fine labels have no IoU
        row.title: found[row.name]
        for row in rows
        if any(" IoU " in name and {*values} != {None} for name, values in found[row.name].items())
    }
    prefix = "r1 IoU "
    first: Iterable[str] = next(iter(known.values()), ())
    classes = [name.removeprefix(prefix) for name in first if name.startswith(prefix)]
    lines = [
        [title, *(spread(figures.get(f"{last_round(figures)} IoU {k}", ())) for k in classes)]
        for title, figures in known.items()
    ]
    return _markdown(["labels: IoU", *classes], lines) if classes else []


def preset_of(params: Params) -> str:
    """The preset that the params are, up to data path, seed and runtime; or the data set's name."""
    for path in sorted(PRESETS.glob("*.yaml")):
        preset = load_preset(path)
        dataset = preset.dataset.model_copy(update={"root": params.dataset.root})
        same = {"dataset": dataset, "runtime": params.runtime, "seed": params.seed}
        if preset.model_copy(update=same) == params:
            return f"`{path}`"
    return f"params for {Path(params.dataset.root).name}"


def _save(figure: Figure, out: Path, name: str, title: str) -> list[str]:
    figure.tight_layout()
    figure.savefig(out.with_name(f"{out.stem}_{name}.png"), dpi=110)
    plt.close(figure)
    return [f"![{title}]({out.stem}_{name}.png)", ""]


def draw_sweep(found: Found, axis: str, marks: Sequence[tuple[str, str]], out: Path, name: str) -> list[str]:
    """Precision and recall of round 1's labels over a param; marks: tick label and row name."""
    if not all(found[row] for _, row in marks):
        return []
    figure, axes = plt.subplots(figsize=(5, 3.2))
    for measure in ("precision", "recall"):
        values = [[value or 0.0 for value in found[row][f"r1 {measure}"]] for _, row in marks]
        means, bars = [float(np.mean(one)) for one in values], [deviation(one) for one in values]
        axes.errorbar([tick for tick, _ in marks], means, bars, marker="o", capsize=3, label=measure)
    axes.set(xlabel=axis, ylabel="pseudo-labels of round 1")
    axes.legend()
    return _save(figure, out, name, f"Precision and recall over {axis}")


def draw_hours(found: Found, params: Params, out: Path) -> list[str]:
    """Validation mIoU over annotation hours, for the kinds whose cost is known."""
    minutes = params.annotation_minutes
    kinds = [kind for kind in KINDS if getattr(minutes, kind) and found[kind].get("r1")]
    if not (found["fine"] and kinds and minutes.fine):
        return []
    ratios = {kind: getattr(minutes, kind) / minutes.fine for kind in kinds}
    figure, axes = plt.subplots(figsize=(5, 3.2))
    fine = [value or 0.0 for value in found["fine"]["r1"]]
    mean, off = float(np.mean(fine)), deviation(fine)
    axes.axhline(mean, color="black", label="fine labels, all images")
    axes.axhspan(mean - off, mean + off, color="black", alpha=0.1)
    series: dict[str, dict[str, list[float | None]]] = {
        "SeSAM": {kind: found[kind]["r1"] for kind in kinds},
        "without SAM": {kind: found[f"{kind}-no-sam"].get("r1", []) for kind in kinds},
        "weak labels alone": {kind: found[kind]["baseline"] for kind in kinds},
        "fine labels, fewer images": {kind: found[f"fine-for-{kind}"].get("r1", []) for kind in kinds},
    }
    for name, values in series.items():
        known = sorted((ratios[kind], [score or 0.0 for score in scores]) for kind, scores in values.items() if scores)
        if known:
            means, bars = [float(np.mean(scores)) for _, scores in known], [deviation(scores) for _, scores in known]
            axes.errorbar([ratio for ratio, _ in known], means, bars, marker="o", capsize=3, label=name)
    axes.set(xscale="log", xlabel="share of the annotation hours of fine labels", ylabel="validation mIoU")
    axes.set_xticks(list(ratios.values()), [f"{kind}\n{ratio:.1%}" for kind, ratio in ratios.items()])
    axes.minorticks_off()
    axes.margins(0.15)
    axes.legend(fontsize=7)
    return _save(figure, out, "hours", "mIoU over annotation hours")


def images_of(figures: Figures) -> dict[str, int]:
    """A row's training images by kind; empty if it ran before they were counted."""
    names = {kind: f"images {kind}" for kind in ALL_KINDS}
    return {kind: int(figures[name][0] or 0) for kind, name in names.items() if name in figures}


def hours_of(figures: Figures, params: Params) -> float | None:
    """The hours that a row's annotation takes; None if its images or their minutes are unknown."""
    images = images_of(figures)
    return annotation_hours(images, params.annotation_minutes)[0] if images else None


def budget_table(found: Found, params: Params) -> list[str]:
    """Hours and scores of each annotation and share of the images that was run, and which have few seeds."""
    head = ["annotation", "images", "hours", "seeds", "labels: mIoU", "r1: val mIoU", "row"]
    lines, few = [], []
    for annotation, names in BUDGETS.items():
        for percent, name in names.items():
            if not (figures := found[name]):
                continue
            title, hours, seeds = TITLES.get(annotation, annotation), hours_of(figures, params), len(figures["seed"])
            images = ", ".join(f"{count} {kind}" for kind, count in images_of(figures).items())
            cells = [f"{percent} %: {images}", "–" if hours is None else f"{hours:.3g}", f"{seeds}"]
            scores = [spread(figures[score]) for score in ("r1 mIoU", "r1")]
            lines.append([title, *cells, *scores, f"`{name}`"])
            few += [f"`{name}` ({seeds})"] * (seeds < ENOUGH_SEEDS)
    noted = ["", f"Fewer than three seeds, hollow in the chart: {'; '.join(few)}."] if few else []
    return [*_markdown(head, lines), *noted]


def draw_budgets(found: Found, params: Params, out: Path) -> list[str]:
    """Validation mIoU over hours, a line per annotation; nothing if no hours are known."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for color, (annotation, names) in zip(COLORS, BUDGETS.items(), strict=True):
        runs = [(hours_of(found[name], params), found[name]["r1"]) for name in names.values() if found[name]]
        points = [(hours, [score or 0.0 for score in scores]) for hours, scores in runs if hours]
        if not points:
            continue
        x = [hours for hours, _ in points]
        y, bars = (
            [float(np.mean(scores)) for _, scores in points],
            [deviation(scores) or np.nan for _, scores in points],
        )
        line, title = "--" if annotation in TITLES else "-", TITLES.get(annotation, annotation)
        axes.errorbar(x, y, bars, color=color, linestyle=line, marker="o", markersize=5, capsize=3, label=title)
        few = [n for n, (_, scores) in enumerate(points) if len(scores) < ENOUGH_SEEDS]
        axes.scatter([x[n] for n in few], [y[n] for n in few], 25, edgecolors=color, facecolors="white", zorder=3)
    if not axes.lines:
        plt.close(figure)
        return []
    axes.set(xscale="log", xlabel="hours of annotation", ylabel="validation mIoU of the student")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, handlelength=3.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save(figure, out, "budgets", "mIoU over hours of annotation")


NETWORKS = {
    "Supervision": ("baseline", "r1"),
    "Steps": ("r1",),
    "Unlabeled": ("r1", "r2"),
    "Mixed": ("r1",),
    "Networks": ("r1",),
    "Other SAMs": ("r1",),
    "Training": ("r1", "r2", "r3"),
}
ABOUT = {
    "Supervision": "`baseline` is the network of the weak labels alone, `r1` the student.",
    "Steps": "Scribbles; the first row is the default.",
    "Other SAMs": "Scribbles, unless no image is annotated.",
    "Training": "Scribbles; the first row is the default, one round.",
    "Unlabeled": "Scribbles, three times the usual iterations. Labels are scored over all images.",
    "Mixed": "The first row has all images scribbled. See the [log](experiment-log.md#fine-masks-among-scribbles).",
    "Networks": "Scribbles; the first row is the default.",
    "Labels": "Scribbles; no network is trained on these labels.",
    "Budgets": "Students of 5 to 100 % of the images, the others left out, all with as many iterations. Hours are by "
    "`annotation_minutes`; `fine` is full supervision, without SAM. A larger share holds the images of a smaller one; "
    "in a mix a few of them change their kind. All seeds have the same images: the spread is not that of their choice.",
}
COMPARED = {  # rows of other tables
    "Steps": ("scribble",),
    "Training": ("scribble",),
    "Budgets": ("fine", *KINDS),
    "Mixed": ("scribble", "baseline-labels"),
    "Networks": ("scribble",),
}
ENOUGH_SEEDS = 3
COLORS = ("black", "C0", "C1", "C2", "C3", "C4")  # of BUDGETS


def write_page(params: Params, groups: Mapping[str, list[Row]], results: Results, out: Path) -> None:
    """Write the page `out` and its charts."""
    rows = {row.name: row for group in groups.values() for row in group}
    results.collect(rows.values())
    results.save()
    about = (
        f"Written by `python -m benchmarks.ablations` with {preset_of(params)}. Mean ± standard deviation over seeds. "
        "`val mIoU` is a network's on validation images; `labels` are the pseudo-labels of a row's last round against "
        "the fine training labels. Every table has one commit; rows that ran with other code are left out."
    )
    lines = [f"# Ablations: {out.stem}", "", about, ""]
    found: dict[str, Figures] = {}
    first = ""
    for title, group in groups.items():
        compared = [*(rows[name] for name in COMPARED.get(title, ())), *group]
        version = results.version_of(group)
        found |= {name: results.figures(row, version) for name, row in rows.items() if row in compared}
        shown = [row for row in compared if found[row.name]]
        if not version or not shown:
            continue
        run = found[shown[0].name]
        lines += [f"## {title}", "", ABOUT[title], ""]
        counts = sorted({len(found[row.name]["seed"]) for row in shown})
        seeds = " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]])))
        plural = "" if seeds == "1" else "s"
        first = first or version[1]
        other = ", other params than in the first table" * (version[1] != first)
        lines += [f"Commit `{version[0]}`{other}, {run['max_iters'][0]} iterations, {seeds} seed{plural} a row.", ""]
        if title == "Budgets":
            lines += [*budget_table(found, params), "", *draw_budgets(found, params, out)]
            continue
        labels_of = "r1" if title == "Steps" else None
        lines += [*score_table(shown, found, NETWORKS.get(title, ()), labels_of), ""]
        if title == "Supervision":
            lines += [*gain_table(found), "", *class_table(shown, found), "", *draw_hours(found, params, out)]
        if title == "Labels":
            lines += draw_sweep(found, "points per prompt, N", [(f"{n}", f"points-{n}") for n in POINTS], out, "points")
            taus = [(f"({mask}, {weak})", f"tau-{mask}-{weak}") for mask, weak in TAUS]
            lines += draw_sweep(found, "(τ1, τ2)", taus, out, "thresholds")
    out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"ablations: wrote {out}")
