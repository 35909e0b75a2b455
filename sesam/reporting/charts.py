"""The report's charts, by Plotly."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from sesam.artifacts.metrics_schema import MetricsByName
from sesam.reporting.tables import Table, confusion_shares, tables

COLORS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
OUTCOME_COLORS = {
    **{"kept": "#2ca02c", "low_coverage": "#d62728", "oversized": "#ff7f0e", "conflict": "#9467bd"},  # components
    **{"correct": "#2ca02c", "wrong": "#d62728", "weak": "#1f77b4", "unknown": "#7f7f7f"},  # contested pixels
}


class Chart(NamedTuple):
    title: str
    figure: go.Figure


def charts(networks: MetricsByName, labels: MetricsByName, classes: Sequence[str]) -> list[Chart]:
    """All charts of a run."""
    of = tables(networks, labels)
    drawn = [
        Chart("Training loss", lines(of["training"])),
        Chart("IoU per class, validation images", bars(of["iou"])),
        Chart("Label sets against fine labels, training images", bars(of["labels"])),
        Chart("Merged labels against fine labels, per class", bars(of["label_classes"])),
    ]
    for round_name, metrics in labels.items():
        by_outcome = _transposed(metrics["components"])
        if any(sum(counts.values()) for counts in by_outcome.values()):  # none if sam.enabled is false
            table = Table("class", "components", by_outcome)
            drawn.append(Chart(f"{round_name}: components by outcome", bars(table, OUTCOME_COLORS)))
    contested = _transposed({name: metrics["contested"] for name, metrics in labels.items()})
    if any(sum(pixels.values()) for pixels in contested.values()):
        table = Table("round", "pixels", contested)
        drawn.append(Chart("Pixels in masks of two classes, by outcome", bars(table, OUTCOME_COLORS)))
    shares = confusion_shares(networks, labels)
    drawn.append(Chart("Confusion matrix: predicted share of each actual class", heat_maps(shares, classes)))
    return drawn


def _transposed(rows: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    columns = next(iter(rows.values()))
    return {column: {name: row[column] for name, row in rows.items()} for column in columns}


def lines(table: Table) -> go.Figure:
    figure = go.Figure(layout={"colorway": COLORS, "xaxis_title": table.x, "yaxis_title": table.y})
    for name, values in table.series.items():
        figure.add_scatter(x=list(values), y=list(values.values()), mode="lines", name=name)
    return figure


def bars(table: Table, stacked: Mapping[str, str] | None = None) -> go.Figure:
    """A bar per value, those of one x side by side; stacked: on each other, in these colors of the series."""
    figure = go.Figure(layout={"colorway": COLORS, "barmode": "stack" if stacked else "group", "yaxis_title": table.y})
    for name, values in table.series.items():
        figure.add_bar(
            x=list(values), y=list(values.values()), name=name, marker_color=stacked[name] if stacked else None
        )
    return figure if stacked else figure.update_yaxes(range=[0, 1])


def heat_maps(shares: Mapping[str, np.ndarray], classes: Sequence[str]) -> go.Figure:
    """Confusion matrices, one shown at a time, chosen from a menu. shares: (K, K + 1), see `confusion_shares`."""
    figure, last = go.Figure(), len(shares) - 1
    for k, cells in enumerate(shares.values()):
        figure.add_heatmap(
            z=cells.round(3).tolist(),
            x=[*classes, "unlabeled"],
            y=list(classes),
            zmin=0,
            zmax=1,
            colorscale="Blues",
            visible=k == last,
            text=np.where(cells >= 0.005, np.char.mod("%.2f", cells), "").tolist(),
            texttemplate="%{text}" if len(classes) <= 12 else None,
            hovertemplate="%{y} predicted as %{x}: %{z:.3f}<extra></extra>",
        )
    buttons = [
        {"label": title, "method": "restyle", "args": [{"visible": [k == shown for k in range(last + 1)]}]}
        for shown, title in enumerate(shares)
    ]
    menu = {"buttons": buttons, "active": last, "x": 0, "xanchor": "left", "y": 1.18}
    figure.update_yaxes(autorange="reversed", title="actual").update_xaxes(title="predicted")
    return figure.update_layout(updatemenus=[menu], height=520)


def as_html(chart: Chart, element_id: str) -> str:
    """A chart as a piece of a page that has Plotly's script. element_id: given, because Plotly's is random."""
    figure = chart.figure.update_layout(
        template="plotly_white",
        height=chart.figure.layout.height or 360,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "y": 1.12},
    )
    settings = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=settings, div_id=element_id)
