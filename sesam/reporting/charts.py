"""The report's charts, of the tables that `summarize` makes, by Plotly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

Row = dict[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # header and rows

COLORS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
FATES = {"kept": "#2ca02c", "low_coverage": "#d62728", "oversized": "#ff7f0e", "conflict": "#9467bd"}
CLAIMS = {"correct": "#2ca02c", "wrong": "#d62728", "weak": "#1f77b4", "unknown": "#7f7f7f"}


class Chart(NamedTuple):
    title: str
    figure: go.Figure


def charts(tables: Mapping[str, Table], hours: float | None, networks: Mapping[str, float | None]) -> list[Chart]:
    """All charts. tables: as `summarize` makes them. hours: of annotation. networks: each one's mIoU by its title."""
    loss, iou, sets, by_class, components, contested, matrices = (
        [dict(zip(tables[name][0], row, strict=True)) for row in tables[name][1]]
        for name in ("training", "iou", "labels", "label_classes", "components", "contested", "confusion")
    )
    found = [
        Chart("Training loss", lines(loss, "step", "loss")),
        Chart("IoU of each class, validation images", bars(iou, "class", "IoU")),
        Chart("Label sets against fine labels, training images", bars(sets, "labels", "share")),
        Chart("Merged labels against fine labels, by class", bars(by_class, "class", "share")),
    ]
    for name in dict.fromkeys(row["round"] for row in components):
        of_round = [row for row in components if row["round"] == name]
        if not any(row["components"] for row in of_round):
            continue  # sam.enabled is false
        title = f"{name}: components by what became of SAM's masks"
        found.append(Chart(title, bars(of_round, "class", "components", FATES)))
    if any(row["pixels"] for row in contested):
        found.append(Chart("Pixels that masks of two classes claimed", bars(contested, "round", "pixels", CLAIMS)))
    found.append(Chart("Share of each actual class given each class", heat_maps(matrices)))
    if hours is not None:
        found.append(Chart("Validation mIoU over hours of annotation", cost_chart(hours, networks)))
    return found


def by_series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each series."""
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row["series"], []).append(row)
    return series


def lines(rows: Sequence[Row], x: str, y: str) -> go.Figure:
    figure = go.Figure()
    for (name, its), color in zip(by_series(rows).items(), COLORS * len(rows), strict=False):
        points = {"x": [float(row[x]) for row in its], "y": [float(row[y]) for row in its]}
        figure.add_scatter(**points, mode="lines", name=name, line={"color": color})
    return figure.update_layout(xaxis_title=x, yaxis_title=y)


def bars(rows: Sequence[Row], x: str, y: str, stacked: dict[str, str] | None = None) -> go.Figure:
    """A bar a row, those of one x side by side; stacked, in the colors of their series, where these are given."""
    figure = go.Figure()
    for (name, its), color in zip(by_series(rows).items(), COLORS * len(rows), strict=False):
        values = {"x": [row[x] for row in its], "y": [float(row[y]) for row in its]}
        figure.add_bar(**values, name=name, marker_color=(stacked or {}).get(name, color))
    figure.update_layout(barmode="stack" if stacked else "group", yaxis_title=y)
    figure.update_xaxes(categoryorder="array", categoryarray=list(dict.fromkeys(row[x] for row in rows)))
    return figure if stacked else figure.update_yaxes(range=[0, 1])


def heat_maps(rows: Sequence[Row]) -> go.Figure:
    """A confusion matrix a series, one shown at a time, chosen from a menu."""
    figure, series = go.Figure(), by_series(rows)
    actual = list(dict.fromkeys(row["actual"] for row in rows))
    predicted = [*actual, *(name for name in dict.fromkeys(row["predicted"] for row in rows) if name not in actual)]
    for name, its in series.items():
        share = {(row["actual"], row["predicted"]): float(row["share"]) for row in its}
        cells = [[share.get((i, j), 0.0) for j in predicted] for i in actual]
        figure.add_heatmap(
            z=cells,
            x=predicted,
            y=actual,
            zmin=0,
            zmax=1,
            colorscale="Blues",
            visible=name == list(series)[-1],
            texttemplate="%{z:.2f}" if len(actual) <= 12 else None,
            hovertemplate="%{y} given %{x}: %{z:.3f}<extra></extra>",
        )
    choices = [
        {"label": name, "method": "restyle", "args": [{"visible": [one == name for one in series]}]} for name in series
    ]
    menu = {"buttons": choices, "active": len(series) - 1, "x": 0, "xanchor": "left", "y": 1.18}
    figure.update_yaxes(autorange="reversed", title="actual").update_xaxes(title="given")
    return figure.update_layout(updatemenus=[menu] if series else [], height=520)


def cost_chart(hours: float, networks: Mapping[str, float | None]) -> go.Figure:
    known = {name: score for name, score in networks.items() if score is not None}
    figure = go.Figure()
    for (name, score), color in zip(known.items(), COLORS * len(networks), strict=False):
        marker = {"color": color, "size": 12}
        figure.add_scatter(x=[hours], y=[score], mode="markers", name=name, marker=marker)
    figure.update_xaxes(title="hours of annotation", rangemode="tozero")
    return figure.update_yaxes(title="mIoU", range=[0, 1])


def as_html(chart: Chart, name: str) -> str:
    """A chart as a piece of a page that has Plotly's script; name: its element's, which else would be random."""
    figure = chart.figure.update_layout(
        template="plotly_white",
        height=chart.figure.layout.height or 360,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "y": 1.12},
    )
    settings = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=settings, div_id=name)
