"""A document as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from ..plot import Curve, Plot
from .document import Document, Figure, Heatmap

# Okabe & Ito's palette, which those who see few colours can tell apart; gray for the limit.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#8A8A8A", "#56B4E9", "#D55E00")
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("addnorm.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

BARE: dict[str, Any] = {
    "template": "none",
    "autosize": True,
    "margin": {"l": 56, "r": 8, "t": 8, "b": 8},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


def render(document: Document) -> str:
    """The whole page: styles, numbers and the drawing code inside it, nothing loaded from anywhere."""
    drawn = any(section.figures for section in document.sections)
    return TEMPLATES.get_template("page.html.j2").render(
        document=document, plot=plot, plotlyjs=get_plotlyjs() if drawn else ""
    )


def plot(figure: Figure | Plot | Heatmap) -> str:
    """The figure's data as JSON, safe inside a script element; the page's own script draws it and picks colours."""
    text = json.dumps(DRAWN[type(figure)](figure), cls=PlotlyJSONEncoder)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def bars(figure: Figure) -> dict[str, Any]:
    """Values over categories; lines over depth, and on a logarithmic axis, which has no zero for a bar to stand on."""
    categories = list(figure.categories)
    traces = []
    for index, (name, values) in enumerate(figure.series.items()):
        if any(value is not None for value in values):  # an empty one keeps its colour, so that all figures agree
            colour, points = COLOURS[index % len(COLOURS)], {"name": name, "x": categories, "y": list(values)}
            if figure.names:
                points["hovertext"] = [plain(each) for each in figure.names]
            line = go.Scatter(**points, mode="lines+markers", marker_color=colour, connectgaps=True)
            lines = figure.logarithmic or figure.lines
            traces.append(line if lines else go.Bar(**points, marker_color=colour))
    xaxis = {"title": {"text": figure.x_label}, "type": "category"}
    yaxis = {"title": {"text": figure.unit}, "type": axis_type(figure.logarithmic)}
    return go.Figure(traces, layout(xaxis, yaxis)).to_plotly_json()


def curves(figure: Plot) -> dict[str, Any]:
    """Curves over one x axis, with the values of each curve for every frame beside them."""
    traces = [trace(figure, index, curve) for index, curve in enumerate(figure.curves)]
    xaxis = {"title": {"text": figure.x_label}, "type": axis_type(figure.log_x)}
    yaxis = {"title": {"text": figure.y_label}, "type": axis_type(figure.log_y), "exponentformat": "power"}
    drawn = go.Figure(traces, layout(xaxis, yaxis)).to_plotly_json()
    rounded = [[[short(value) for value in frame] for frame in curve.frames] for curve in figure.curves]
    return drawn | {"frames": rounded, "sizes": [len(control.values) for control in figure.controls]}


def trace(figure: Plot, index: int, curve: Curve) -> go.Bar | go.Scatter:
    frame = curve.frames[figure.first if len(curve.frames) > 1 else 0]
    points = {"name": curve.name, "x": list(figure.x), "y": [short(value) for value in frame]}
    colour = COLOURS[index % len(COLOURS)]
    if curve.style == "bars":
        return go.Bar(**points, marker_color=colour)
    if curve.style == "points":
        return go.Scatter(**points, mode="markers", marker={"color": colour, "size": 9})
    line = {"color": colour, "width": 2, "dash": "dash" if curve.style == "dashes" else "solid"}
    return go.Scatter(**points, mode="lines", line=line)


def short(value: float | None) -> float | None:
    """Four digits are more than a screen shows."""
    return None if value is None else float(f"{value:.4g}")


def axis_type(logarithmic: bool) -> str:
    return "log" if logarithmic else "linear"


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any]) -> go.Layout:
    return go.Layout(
        **BARE,
        barmode="group",
        height=360,
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top"},
        xaxis={"automargin": True, **xaxis},
        yaxis=yaxis,
    )


def heat(figure: Heatmap) -> dict[str, Any]:
    """Rows from the top down."""
    options: dict[str, Any] = {}
    if figure.hovers:
        options = {"hovertext": [[plain(text) for text in row] for row in figure.hovers], "hoverinfo": "text"}
    trace = go.Heatmap(
        x=list(figure.columns),
        y=list(figure.rows),
        z=[list(row) for row in figure.values],
        colorscale="Cividis",
        colorbar={"title": {"text": figure.unit, "side": "right"}, "thickness": 12},
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **options,
    )
    axes = go.Layout(
        **BARE,
        height=110 + 20 * max(len(figure.rows), 8),
        xaxis={"title": {"text": figure.x_label}, "automargin": True, "type": "category"},
        yaxis={"title": {"text": figure.y_label}, "automargin": True, "type": "category", "autorange": "reversed"},
    )
    return go.Figure([trace], axes).to_plotly_json()


def plain(text: str) -> str:
    """Plotly reads markup in labels: what could be markup is written out."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


DRAWN: dict[type, Callable[[Any], dict[str, Any]]] = {Figure: bars, Plot: curves, Heatmap: heat}
