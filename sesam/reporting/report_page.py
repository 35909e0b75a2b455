"""The report: a run on one page."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from plotly.offline import get_plotlyjs

from sesam.artifacts.manifest import Dataset
from sesam.artifacts.metrics_schema import read_metrics
from sesam.artifacts.sources import SOURCE_NAMES, SOURCE_PALETTE
from sesam.params import Params, flatten
from sesam.reporting.charts import as_html, charts
from sesam.reporting.gallery import LAYERS, GalleryImage
from sesam.reporting.git import committed_params
from sesam.reporting.pages import Color
from sesam.reporting.tables import annotation_hours, network_title
from sesam.yaml_io import read_yaml

TEMPLATE = Path(__file__).with_name("report.html")


class ParamDiff(NamedTuple):
    """A param of this run; committed: its value in the last commit, None where it is the same."""

    key: str
    value: str
    committed: str | None


def compare_params(params: Mapping[str, Any], committed: Mapping[str, Any]) -> list[ParamDiff]:
    """Every param of either, without `runtime`, which changes no result; "–" where one has no such param."""
    now, then = (
        flatten({group: value for group, value in values.items() if group != "runtime"})
        for values in (params, committed)
    )
    absent = object()

    def text(value: Any) -> str:
        return "–" if value is absent else "null" if value is None else str(value)

    pairs = {key: (now.get(key, absent), then.get(key, absent)) for key in [*now, *then]}
    return [ParamDiff(key, text(new), None if new == old else text(old)) for key, (new, old) in pairs.items()]


def legend(names: tuple[str, ...], palette: tuple[Color, ...]) -> list[tuple[str, str]]:
    return [(name, "#{:02x}{:02x}{:02x}".format(*color)) for name, color in zip(names, palette, strict=True)]


def render_page(data: Dataset, params: Params, galleries: Mapping[str, list[GalleryImage]]) -> str:
    """The page. galleries: of each round."""
    networks, labels = read_metrics(params.rounds, data.classes)
    hours, cost = annotation_hours(len(data.train), params.weak_labels.kind, params.annotation_minutes)
    drawn = charts(networks, labels, data.classes)
    now, (commit, then) = read_yaml(Path("params.yaml")), committed_params()
    layers = {
        name: [[asdict(layer) for layer in image.layers] for image in images] for name, images in galleries.items()
    }
    names = {layer["name"] for images in layers.values() for image in images for layer in image}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["quote"] = shlex.quote
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        data=data,
        weak=params.weak_labels.kind,
        hours=hours,
        cost=cost,
        networks={network_title(name): metrics for name, metrics in networks.items()},
        labels=labels,
        charts=[(chart.title, as_html(chart, f"chart{k}")) for k, chart in enumerate(drawn)],
        gamma=params.teacher_labels.confidence_threshold,
        galleries=galleries,
        layers=layers,
        layer_names=[name for name in LAYERS if name in names],
        legends={
            "classes": legend(data.classes, data.palette),
            "sources": legend(SOURCE_NAMES[1:], SOURCE_PALETTE[1:]),
        },
        params=compare_params(now, then if commit else now),
        commit=commit,
        plotly=get_plotlyjs(),
    )
