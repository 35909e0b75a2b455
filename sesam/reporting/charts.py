"""The report's charts, by Plotly."""

from collections.abc import Mapping, Sequence
from html import escape  # of class names: Plotly's texts are HTML

import numpy as np
import plotly.graph_objects as go

from sesam.artifacts.metrics_schema import MetricsByName
from sesam.reporting.tables import Table, confusion_ratios, missing_title, tables, transpose

COLORS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
OUTCOME_COLORS = {
    **{"kept": "#2ca02c", "low_coverage": "#d62728", "oversized": "#ff7f0e"},  # components
    **{"correct": "#2ca02c", "wrong": "#d62728", "weak": "#1f77b4", "unknown": "#7f7f7f"},  # contested pixels
}


def charts(networks: MetricsByName, labels: MetricsByName, classes: Sequence[str]) -> dict[str, go.Figure]:
    """All charts of a run, by title."""
    by_name = tables(networks, labels)
    figures = {
        "Training loss": lines(by_name["training"]),
        "IoU per class, validation images": bars(by_name["iou"]),
        "Label sets against fine labels, training images": bars(by_name["labels"]),
        "Pseudo-labels against fine labels, per class": bars(by_name["label_classes"]),
    }
    stacks = {
        f"{name}: components by outcome": Table("class", "components", transpose(metrics["component_outcomes"]))
        for name, metrics in labels.items()
    }
    contested = transpose({name: metrics["contested_pixels"] for name, metrics in labels.items()})
    stacks["Pixels in masks of two classes, by outcome"] = Table("round", "pixels", contested)
    for title, table in stacks.items():
        if any(any(counts.values()) for counts in table.series.values()):  # none if sam.enabled is false
            figures[title] = bars(table, OUTCOME_COLORS)
    ratios = confusion_ratios(networks, labels)
    return figures | {"Confusion matrix: predicted share of each actual class": heat_maps(ratios, classes)}


def lines(table: Table) -> go.Figure:
    figure = go.Figure(layout={"colorway": COLORS, "xaxis_title": table.x, "yaxis_title": table.y})
    for name, values in table.series.items():
        figure.add_scatter(x=list(values), y=list(values.values()), mode="lines", name=name)
    return figure


def bars(table: Table, stacked: Mapping[str, str] | None = None) -> go.Figure:
    """A bar per value, those of one x side by side; stacked: on each other, in these colors of the series."""
    figure = go.Figure(layout={"colorway": COLORS, "barmode": "stack" if stacked else "group", "yaxis_title": table.y})
    figure.update_xaxes(type="category")  # not guessed from the names, which may be numbers or dates
    for name, values in table.series.items():
        color = stacked[name] if stacked else None
        figure.add_bar(x=list(map(escape, values)), y=list(values.values()), name=name, marker_color=color)
    return figure if stacked else figure.update_yaxes(range=[0, 1])


def heat_maps(ratios: Mapping[str, np.ndarray], classes: Sequence[str]) -> go.Figure:
    """Confusion matrices, one shown at a time, chosen from a menu. ratios: (K, K + 1), see `confusion_ratios`."""
    figure, last = go.Figure(), len(ratios) - 1
    for k, cells in enumerate(ratios.values()):
        figure.add_heatmap(
            z=cells.round(3).tolist(),
            x=list(map(escape, (*classes, missing_title(classes)))),
            y=list(map(escape, classes)),
            zmin=0,
            zmax=1,
            colorscale="Blues",
            visible=k == last,
            text=np.where(cells >= 0.005, np.char.mod("%.2f", cells), "").tolist(),
            texttemplate="%{text}" if len(classes) <= 12 else None,
            hovertemplate="%{y} predicted as %{x}: %{z:.3f}<extra></extra>",
        )
    visible = np.eye(len(ratios), dtype=bool).tolist()  # by button
    buttons = [
        {"label": title, "method": "restyle", "args": [{"visible": only_this}]}
        for title, only_this in zip(ratios, visible, strict=True)
    ]
    menu = {"buttons": buttons, "active": last, "x": 0, "xanchor": "left", "y": 1.18}
    figure.update_yaxes(autorange="reversed", title="actual", type="category")
    figure.update_xaxes(title="predicted", type="category")
    return figure.update_layout(updatemenus=[menu], height=520)


def as_html(figure: go.Figure, element_id: str) -> str:
    """A chart as a piece of a page that has Plotly's script. element_id: given, because Plotly's is random."""
    figure.update_layout(
        template="plotly_white",
        height=figure.layout.height or 360,
        margin={"l": 60, "r": 20, "t": 30, "b": 60},
        legend={"orientation": "h", "y": 1.12},
    )
    settings = {"displayModeBar": False, "responsive": True}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=settings, div_id=element_id)
