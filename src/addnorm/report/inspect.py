"""An inspection as a document: warnings first, then all sites, curves over depth, distributions, the worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..xray import Inspection
from ..xray.measurements import MEASUREMENTS
from .document import Document, Figure, Heatmap, Section, Table, digits, duration

SHOWN = ("residual_ratio", "sigma")  # whose worst tokens are listed
QUANTILES = ("min", "p05", "p50", "p95", "max")


def document(found: Inspection) -> Document:
    """Everything that was found, the warnings first."""
    sections = (warnings(found), overview(found), depth(found), distributions(found), worst(found), legend())
    return Document(f"addnorm inspect: {found.model}", summary(found), sections, facts(found))


def summary(found: Inspection) -> tuple[str, ...]:
    """What was looked at, how much there is to see, and where to look first."""
    mode = "forward and backward" if found.backward else "forward"
    lines = [
        f"{len(found.sites)} Add & Norm sites, {found.sites[0].tokens} real tokens in {found.batches} batches, {mode}.",
        f"{len(found.findings)} findings." if found.findings else "Nothing suspicious was found.",
    ]
    counts = {site.site: sum(each.site == site.site for each in found.findings) for site in found.sites}
    first = max(counts, key=lambda name: (counts[name], beyond(found, name)))
    if counts[first]:
        what = "; ".join(f"{each.measurement}: {each.meaning}" for each in found.findings if each.site == first)
        lines.append(f"Look first at {first}: {what}")
    return tuple(lines)


def beyond(found: Inspection, name: str) -> float:
    """How far the worst value of a site lies beyond its limit."""
    site = next(site for site in found.sites if site.site == name)
    return max((value for each in MEASUREMENTS if (value := severity(each, site.values[each])) is not None), default=0)


def warnings(found: Inspection) -> Section:
    rows = tuple(
        (
            each.site or "the model",
            MEASUREMENTS[each.measurement].title,
            f"{each.meaning} {f'({each.evidence}) ' if each.evidence else ''}{each.action}",
            number(each.value),
            f"{number(each.threshold)}{'*' if each.heuristic else ''}",
        )
        for each in found.findings
    )
    columns = ("site", "measurement", "what it means, what to do", "value", "limit")
    if not rows:
        return Section("Findings", ("None: every value is inside its limits.",))
    return Section("Findings", tables=(Table(columns, rows, labels=3, notes=("* a rule of thumb",)),))


def overview(found: Inspection) -> Section:
    """Sites down, measurements across: colours say how near each value is to its limit."""
    names = [name for name in MEASUREMENTS if any(site.values[name] is not None for site in found.sites)]
    cells = [[site.values[name] for name in names] for site in found.sites]

    def each(function: Callable[[str, str, float | None], Any]) -> tuple[tuple[Any, ...], ...]:
        return tuple(
            tuple(function(site.site, name, value) for name, value in zip(names, row, strict=True))
            for site, row in zip(found.sites, cells, strict=True)
        )

    figure = Heatmap(
        title="How near each value is to its limit: 0 is far, 1 is at the limit, 2 and more is beyond",
        rows=tuple(site.site for site in found.sites),
        columns=tuple(MEASUREMENTS[name].title for name in names),
        values=each(lambda _, name, value: capped(severity(name, value))),
        unit="of the limit",
        texts=each(lambda _, name, value: number(value)),
        hovers=each(lambda site, name, value: hover(site, name, value)),
        low=0.0,
        high=2.0,
    )
    rows = tuple((MEASUREMENTS[name].title, *ends(found, name)) for name in names)
    text = "Blank colours have no limit of their own: the sites are judged together, or nothing was measured."
    return Section("All sites", (text,), (Table(("over the sites", "least", "most"), rows),), (figure,))


def ends(found: Inspection, name: str) -> tuple[str, str]:
    """The least and the most of a measurement over the sites."""
    values = [value for site in found.sites if (value := site.values[name]) is not None]
    return number(min(values)), number(max(values))


def hover(site: str, name: str, value: float | None) -> str:
    """A cell in words. Plotly reads markup in labels: what could be markup is written out."""
    measurement = MEASUREMENTS[name]
    text = f"{site}\n{measurement.title}: {number(value)}\n{measurement.formula}\nhealthy: {measurement.healthy}"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", "<br>")


def severity(name: str, value: float | None) -> float | None:
    """1 at the nearest limit; None for what is judged over the whole model."""
    measurement = MEASUREMENTS[name]
    found = [] if measurement.whole else [rule.severity(value) for rule in measurement.rules]
    return max((each for each in found if each is not None), default=None)


def capped(value: float | None) -> float | None:
    return None if value is None else min(value, 2.0)


def depth(found: Inspection) -> Section:
    """Curves over the sites, in order of execution."""
    categories = tuple(site.site for site in found.sites)

    def curve(title: str, unit: str, *names: str, logarithmic: bool = False) -> Figure:
        series = {MEASUREMENTS[name].title: tuple(usable(site.values[name], logarithmic) for site in found.sites)
                  for name in names}  # fmt: skip
        return Figure(title, categories, series, unit, logarithmic, lines=True)

    curves = (
        curve("Branch beside the stream", "ratio", "residual_ratio", "branch_dependency", "block_influence"),
        curve("Angle of branch and stream", "cosine", "alignment"),
        curve("Length of the stream; its gradient", "norm", "norm_growth", "gradient_profile", logarithmic=True),
        curve("What is left of the sequence's variety, and of the identity path", "share", "rank_collapse",
              "identity_share"),
    )  # fmt: skip
    whole = tuple((MEASUREMENTS[name].title, number(value)) for name, value in found.overall.items())
    table = (Table(("over the whole model", "value"), whole),) if whole else ()
    return Section("Over depth", tables=table, figures=curves)


def usable(value: float | None, logarithmic: bool) -> float | None:
    """What a curve can show."""
    if value is None or not math.isfinite(value) or (logarithmic and value <= 0):
        return None
    return value


def distributions(found: Inspection) -> Section:
    """Of sigma over tokens, of gamma over channels."""
    spreads = [dict(map(tuple, site.details["sigma"]["tokens"]["bins"])) for site in found.sites]
    edges = sorted({edge for bins in spreads for edge in bins})
    sites = tuple(site.site for site in found.sites)
    shares = tuple(tuple(bins.get(edge, 0) / max(sum(bins.values()), 1) for edge in edges) for bins in spreads)
    figures: list[Figure | Heatmap] = []
    if edges:
        columns = tuple(f"{edge:.3g}" for edge in edges)
        figures.append(Heatmap("sigma: share of tokens from each value up", sites, columns, shares, "share"))
    for name in ("gamma", "beta"):
        found_quantiles = [site.details["gamma_outliers"][name] or {} for site in found.sites]
        series = {share: tuple(each.get(share) for each in found_quantiles) for share in QUANTILES}
        if any(found_quantiles):
            figures.append(Figure(f"{name}: quantiles over channels", sites, series, name, lines=True))
    return Section("Distributions", figures=tuple(figures))


def worst(found: Inspection) -> Section:
    """The tokens and channels that stand out most."""
    tokens = tuple(
        (site.site, MEASUREMENTS[name].title, place(entry), number(entry["value"]))
        for name in SHOWN
        for site, entry in sorted(
            ((site, entry) for site in found.sites for entry in site.details[name]["worst"][:1]),
            key=lambda pair: pair[1]["value"] * (-1 if name == "residual_ratio" else 1),
        )[:4]
    )
    massive = tuple(
        (site.site, MEASUREMENTS["massive_activations"].title, place(entry), number(entry["value"]))
        for site in found.sites
        for entry in site.details["massive_activations"]["worst"]
    )
    channels = tuple(
        (site.site, MEASUREMENTS[name].title, ", ".join(map(str, site.details[name]["channels"])))
        for site in found.sites
        for name in ("outlier_channels", "dead_channels", "gamma_outliers")
        if site.details[name]["channels"]
    )
    tables = [Table(("site", "measurement", "token", "value"), tokens + massive, labels=3)]
    if channels:
        tables.append(Table(("site", "measurement", "channels"), channels, labels=3))
    return Section("Worst tokens and channels", tables=tuple(tables))


def place(entry: dict[str, Any]) -> str:
    names = ("batch", "sequence", "position", "channel")
    return ", ".join(f"{name} {entry[name]}" for name in names if name in entry)


def legend() -> Section:
    """What each measurement is."""
    rows = tuple((each.title, each.formula, each.healthy, each.source) for each in MEASUREMENTS.values())
    text = "x is the stream, f the branch, z = x + f, y = norm(z); limits with a star are rules of thumb."
    return Section(
        "The measurements", (text,), (Table(("measurement", "formula", "healthy", "source"), rows, labels=4),)
    )


def facts(found: Inspection) -> dict[str, str]:
    overhead = found.overhead
    skipped = {f"no site: {name}": reason for name, reason in found.skipped.items()}
    return {
        "Overhead": f"{digits(overhead.factor)} times a plain pass of {duration(overhead.plain)}",
        "Capture": duration(overhead.capture),
        "Took": duration(overhead.total),
        "Not in one piece": "; ".join(found.breaks) or "captured whole",
        **skipped,
    }


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return digits(value) if math.isfinite(value) else str(value)
