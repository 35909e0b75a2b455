"""The report: a run on one page."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from plotly.offline import get_plotlyjs

from sesam.artifacts.manifest import Manifest
from sesam.artifacts.metrics_schema import describe_images, read_metrics
from sesam.artifacts.sources import SOURCE_PALETTE, SOURCE_TITLES
from sesam.params import Params, flatten
from sesam.reporting.charts import as_html, charts
from sesam.reporting.git import committed_params
from sesam.reporting.report_images import LAYERS, ReportImage
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

    def text(value: Any) -> str:
        return "null" if value is None else str(value)

    now, then = flatten({**params, "runtime": {}}), flatten({**committed, "runtime": {}})
    pairs = {key: (now.get(key, "–"), then.get(key, "–")) for key in [*now, *then] if key != "runtime"}
    return [ParamDiff(key, text(new), None if new == old else text(old)) for key, (new, old) in pairs.items()]


def render_page(manifest: Manifest, params: Params, images_of_rounds: Mapping[str, list[ReportImage]]) -> str:
    """Scores, charts, params with their difference from the last commit, and each round's images."""
    networks, labels = read_metrics(params.rounds, manifest.classes)
    images = labels[next(reversed(params.rounds))]["images"]
    hours, cost = annotation_hours(images, params.annotation_minutes)
    now, (commit, then) = read_yaml(Path("params.yaml")), committed_params()
    layers = {name: [asdict(image)["layers"] for image in images] for name, images in images_of_rounds.items()}
    shown = {layer.name for images in images_of_rounds.values() for image in images for layer in image.layers}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["quote"] = shlex.quote
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        manifest=manifest,
        images=describe_images(images),
        hours=hours,
        cost=cost,
        networks={network_title(name): metrics for name, metrics in networks.items()},
        labels=labels,
        charts=charts(networks, labels, manifest.classes),
        as_html=as_html,
        gamma=params.teacher.confidence_threshold,
        images_of_rounds=images_of_rounds,
        layers=layers,
        source_titles=SOURCE_TITLES,
        layer_names=[name for name in LAYERS if name in shown],
        legends={
            "classes": zip(manifest.classes, manifest.palette, strict=True),
            "sources": zip(SOURCE_TITLES[1:], SOURCE_PALETTE[1:], strict=True),
        },
        params=compare_params(now, then if commit else now),
        commit=commit,
        plotly=get_plotlyjs(),
    )
