"""A document as one self-contained HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

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


def write(document: Document, path: Path) -> None:
    path.write_text(render(document), encoding="utf-8")


def plot(figure: Figure | Heatmap) -> str:
    """The figure's data as JSON, safe inside a script element; the page's own script draws it and picks colours."""
    drawn = heat(figure) if isinstance(figure, Heatmap) else series(figure)
    text = json.dumps(drawn.to_plotly_json(), cls=PlotlyJSONEncoder)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def series(figure: Figure) -> go.Figure:
    """Bars, or lines over depth and on a logarithmic axis, which has no zero for a bar to stand on."""
    categories = list(figure.categories)
    traces = []
    for index, (name, values) in enumerate(figure.series.items()):
        if any(value is not None for value in values):  # an empty one keeps its colour, so that all figures agree
            colour, points = COLOURS[index % len(COLOURS)], {"name": name, "x": categories, "y": list(values)}
            line = go.Scatter(**points, mode="lines+markers", marker_color=colour, connectgaps=True)
            lines = figure.logarithmic or figure.lines
            traces.append(line if lines else go.Bar(**points, marker_color=colour))
    layout = go.Layout(
        **BARE,
        barmode="group",
        height=360,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis={"automargin": True, "type": "category"},
        yaxis={"title": {"text": figure.unit}, "type": "log" if figure.logarithmic else "linear"},
    )
    return go.Figure(traces, layout)


def heat(figure: Heatmap) -> go.Figure:
    """Rows from the top down."""
    options: dict[str, Any] = {"zmin": figure.low, "zmax": figure.high}
    if figure.texts:
        options |= {"text": [list(row) for row in figure.texts], "texttemplate": "%{text}", "textfont": {"size": 10}}
    if figure.hovers:
        options |= {"hovertext": [list(row) for row in figure.hovers], "hoverinfo": "text"}
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
    layout = go.Layout(
        **BARE,
        height=140 + 24 * max(len(figure.rows), 6),
        xaxis={"automargin": True, "type": "category", "side": "top", "tickangle": -45},
        yaxis={"automargin": True, "type": "category", "autorange": "reversed"},
    )
    return go.Figure([trace], layout)
