"""The report: a run on one page."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from plotly.offline import get_plotlyjs

from sesam.artifacts.manifest import Dataset
from sesam.artifacts.metrics_schema import read_metrics, read_summary
from sesam.artifacts.sources import SOURCE_NAMES, SOURCE_PALETTE
from sesam.params import Params, flatten
from sesam.paths import METRICS
from sesam.reporting.charts import as_html, charts
from sesam.reporting.gallery import LAYERS, GalleryImage
from sesam.reporting.pages import Color
from sesam.reporting.tables import network_title, tables
from sesam.yaml_io import read_yaml

TEMPLATE = Path(__file__).with_name("report.html")


class ParamDiff(NamedTuple):
    """A param; committed: what the last commit has, where that differs."""

    key: str
    value: str
    committed: str | None


def committed_params() -> tuple[str | None, Mapping[str, Any]]:
    """The last commit's short hash and its params; None and nothing where git has none that can be read."""
    try:
        commit, text = (
            subprocess.run(["git", *command], capture_output=True, check=True, text=True, encoding="utf-8").stdout
            for command in (("rev-parse", "--short", "HEAD"), ("show", "HEAD:./params.yaml"))
        )
        params = yaml.safe_load(text)
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError, yaml.YAMLError):
        return None, {}
    return (commit.strip(), params) if isinstance(params, Mapping) else (None, {})


def compare_params(params: Mapping[str, Any], committed: Mapping[str, Any]) -> list[ParamDiff]:
    """Every param, with the committed value where it differs; one that only one of them has is "–" in the other."""
    now, then = flatten(params), flatten(committed)

    def text(values: Mapping[str, Any], key: str) -> str:
        if key not in values:
            return "–"
        return "null" if values[key] is None else str(values[key])

    return [
        ParamDiff(
            key, text(now, key), None if key in now and key in then and now[key] == then[key] else text(then, key)
        )
        for key in dict.fromkeys([*now, *then])
    ]


def _decisive(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without `runtime`, which changes no result, and which therefore makes no new report."""
    return {group: value for group, value in params.items() if group != "runtime"}


def legend(names: tuple[str, ...], palette: tuple[Color, ...]) -> list[tuple[str, str]]:
    return [(name, "#{:02x}{:02x}{:02x}".format(*color)) for name, color in zip(names, palette, strict=True)]


def render_page(data: Dataset, params: Params, rounds: Mapping[str, list[GalleryImage]]) -> str:
    """The page. rounds: the gallery of each round."""
    networks, labels = read_metrics(params.rounds, data.classes)
    summary = read_summary(METRICS / "summary.json")
    now, (commit, then) = read_yaml(Path("params.yaml")), committed_params()
    reached = {network_title(name): scores["mIoU"] for name, scores in networks.items()}
    drawn = charts(tables(networks, labels, data.classes), summary["hours"], reached)
    content: dict[str, Any] = {
        "networks": [
            (network_title(name), scores["mIoU"], scores["pixel_accuracy"]) for name, scores in networks.items()
        ],
        "labels": [
            (name, part, scores["precision"], scores["recall"], scores["coverage"], scores["mIoU"])
            for name, judged in labels.items()
            for part, scores in judged["scores"].items()
        ],
        "ranking": {name: judged["ranking"] for name, judged in labels.items()},
        "hours": summary["hours"],
        "of_fine": summary["of_fine"],
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template.filters["quote"] = shlex.quote
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        content,
        data=data,
        weak=params.weak_labels.kind,
        gamma=params.teacher_labels.confidence_threshold,
        charts=[(chart.title, as_html(chart, f"chart{k}")) for k, chart in enumerate(drawn)],
        params=compare_params(*(_decisive(one) for one in (now, then if commit else now))),
        commit=commit,
        gallery={name: [[asdict(layer) for layer in one.layers] for one in its] for name, its in rounds.items()},
        names=[
            name
            for name in LAYERS
            if name in {layer.name for its in rounds.values() for one in its for layer in one.layers}
        ],
        rounds=rounds,
        legends={
            "classes": legend(data.classes, data.palette),
            "sources": legend(SOURCE_NAMES[1:], SOURCE_PALETTE[1:]),
        },
        plotly=get_plotlyjs(),
    )
