"""A document as one self-contained HTML page."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

from .document import Document, Figure

# Okabe & Ito's palette, which those who see few colours can tell apart; gray for the limit.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#8A8A8A", "#56B4E9", "#D55E00")
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("addnorm.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(document: Document) -> str:
    """The whole page: styles, numbers and the drawing code inside it, nothing loaded from anywhere."""
    drawn = any(section.figures for section in document.sections)
    return TEMPLATES.get_template("page.html.j2").render(
        document=document, plot=plot, plotlyjs=get_plotlyjs() if drawn else ""
    )


def write(document: Document, path: Path) -> None:
    path.write_text(render(document), encoding="utf-8")


def plot(figure: Figure) -> str:
    """The figure's data as JSON, safe inside a script element; the page's own script draws it and picks colours."""
    categories = list(figure.categories)
    traces = []
    for index, (name, values) in enumerate(figure.series.items()):
        if any(value is not None for value in values):  # an empty one keeps its colour, so that all figures agree
            colour, points = COLOURS[index % len(COLOURS)], {"name": name, "x": categories, "y": list(values)}
            # A logarithmic axis has no zero for a bar to stand on.
            line = go.Scatter(**points, mode="lines+markers", marker_color=colour, connectgaps=True)
            traces.append(line if figure.logarithmic else go.Bar(**points, marker_color=colour))
    layout = go.Layout(
        template="none",
        barmode="group",
        height=360,
        autosize=True,
        margin={"l": 56, "r": 8, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis={"automargin": True, "type": "category"},
        yaxis={"title": {"text": figure.unit}, "type": "log" if figure.logarithmic else "linear"},
    )
    text = json.dumps(go.Figure(traces, layout).to_plotly_json(), cls=PlotlyJSONEncoder)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
