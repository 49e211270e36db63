"""An inspection as a document: warnings first, then all sites, curves over depth, distributions, the worst."""

from __future__ import annotations

import math
from collections import Counter

import torch

from ..machine import cpu_model
from ..words import count
from ..xray import Finding, Inspection
from ..xray.inspection import SiteResult
from ..xray.measurements import MEASUREMENTS
from ..xray.streaming import place
from .document import Board, Cell, Document, Figure, Heatmap, Lead, Section, Table, digits, duration, number

WORST = {  # whose worst tokens are listed, and what those are
    "residual_ratio": "largest |f| / |x|",
    "alignment": "least cos(x, f)",
    "sigma": "least sigma",
    "magnitude": "largest value",
    "gradient_profile": "largest gradient",
}
LISTED = 3  # of each
QUANTILES = ("min", "p05", "p50", "p95", "max")
LEGEND = (
    "The nearer, the stronger the colour; what is framed is a finding. Cells without colour have no limit of their "
    "own: there the sites are judged together, or nothing was measured. A click on a heading sorts."
)
ORDER = "site, in order of execution"
STAR = "* a rule of thumb: it says where to look, not that something is wrong"
URGENCY = (
    "wrong: results are, or are about to be; unstable: the signal or its gradient is lost or explodes; unbalanced: "
    "parts of the model do nothing, or nearly everything; note: good to know before pruning or quantising"
)


def document(found: Inspection) -> Document:
    """Everything that was found, the warnings first."""
    sections = (warnings(found), overview(found), depth(found), distributions(found), worst(found), legend(found))
    return Document(f"addnorm inspect: {found.model}", summary(found), sections, facts(found), lead(found))


def summary(found: Inspection) -> tuple[str, ...]:
    """What was looked at, and how much there is to see."""
    mode = "forward and backward" if found.backward else "forward"
    where = f"{count(found.sites[0].tokens, 'real token')} in {count(found.batches, 'batch')}"
    looked = f"{count(len(found.sites), 'Add & Norm site')}, {where}, {mode}."
    if not found.findings:
        return looked, "Nothing suspicious was found."
    counts = Counter(finding.urgency for finding in found.findings)
    kinds = ", ".join(f"{urgency} {counts[urgency]}" for urgency in sorted(counts, reverse=True))
    return looked, f"{count(len(found.findings), 'finding')} ({kinds})."


def lead(found: Inspection) -> Lead | None:
    """Where to look first, and why."""
    if not found.first:
        return None
    reasons = tuple(reason(each) for each in found.first)
    return Lead(f"Look first at {found.first[0].site or 'the whole model'}", reasons)


def reason(finding: Finding) -> str:
    """A finding in a few sentences."""
    title = MEASUREMENTS[finding.measurement].title
    where = f" ({finding.evidence})" if finding.evidence else ""
    return f"{title} {number(finding.value)} (limit {limit(finding)}){where}: {finding.meaning} {finding.action}"


def limit(finding: Finding) -> str:
    return f"{number(finding.threshold)}{'*' if finding.heuristic else ''}"


def warnings(found: Inspection) -> Section:
    """Findings of one kind together: those of the site to look at first, then the most urgent."""
    if not found.findings:
        return Section("Findings", ("None: every value is inside its limits.",))
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in sorted(found.findings, key=lambda each: (each not in found.first, -each.urgency)):
        kinds.setdefault((finding.measurement, finding.meaning), []).append(finding)
    rows = tuple(
        (
            MEASUREMENTS[measurement].title,
            str(same[0].urgency),
            "\n".join(f"{number(each.value)} {f'at {each.site}' if each.site else 'in the model'}" for each in same),
            "\n".join((f"{meaning} {same[0].action}", *dict.fromkeys(each.evidence for each in same if each.evidence))),
            limit(same[0]),
        )
        for (measurement, meaning), same in kinds.items()
    )
    columns = ("finding", "urgency", "value, where", "what it means, what to do", "limit")
    return Section("Findings", tables=(Table(columns, rows, labels=4, notes=(STAR, URGENCY)),))


def overview(found: Inspection) -> Section:
    """Sites down, measurements across: colours say how near each value is to its limit."""
    names = measured(found)
    flagged = {(finding.site, finding.measurement) for finding in found.findings}
    rows = tuple(
        (f"{index} {site.site}", tuple(cell(site, name, (site.site, name) in flagged) for name in names))
        for index, site in enumerate(found.sites, 1)
    )
    titles = tuple(MEASUREMENTS[name].title for name in names)
    board = Board("How near each value is to its limit", "site", titles, rows, LEGEND)
    return Section("All sites", boards=(board,))


def cell(site: SiteResult, name: str, flagged: bool) -> Cell:
    measurement, value = MEASUREMENTS[name], site.values[name]
    words = f"{site.site}: {measurement.title} {number(value)}\n{measurement.formula}\nhealthy: {measurement.healthy}"
    return Cell(brief(value), severity(name, value, flagged), words, flagged)


def brief(value: float | None) -> str:
    """Two digits: cells are narrow."""
    if value is not None and 0 < abs(value) < 1e-4:
        return f"{value:.0e}"
    return number(None if value is None else float(f"{value:.2g}"))


def measured(found: Inspection) -> list[str]:
    """The measurements that any site has."""
    return [name for name in MEASUREMENTS if any(site.values[name] is not None for site in found.sites)]


def ends(found: Inspection, name: str) -> tuple[str, str]:
    """The least and the most of a measurement over the sites."""
    values = [value for site in found.sites if (value := site.values[name]) is not None]
    return (number(min(values)), number(max(values))) if values else ("–", "–")


def severity(name: str, value: float | None, flagged: bool) -> float | None:
    """1 at the nearest limit, no more where it is no finding; None for what is judged over the whole model."""
    measurement = MEASUREMENTS[name]
    found = [] if measurement.whole else [rule.severity(value) for rule in measurement.rules]
    most = max((each for each in found if each is not None), default=None)
    return most if most is None or flagged else min(most, 1.0)


def depth(found: Inspection) -> Section:
    """Curves over the sites, in order of execution."""
    names = tuple(site.site for site in found.sites)

    def curve(title: str, unit: str, *chosen: str, logarithmic: bool = False) -> Figure:
        series = {MEASUREMENTS[name].title: tuple(usable(site.values[name], logarithmic) for site in found.sites)
                  for name in chosen}  # fmt: skip
        return Figure(title, numbered(found), series, unit, logarithmic, True, ORDER, names)

    curves = (
        curve("Branch beside the stream", "ratio", "residual_ratio", "branch_dependency", "block_influence"),
        curve("Angle of branch and stream", "cosine", "alignment"),
        curve("Length of the stream; its gradient", "norm", "norm_growth", "gradient_profile", logarithmic=True),
        curve("What is left of the sequence's variety, and of the identity path", "share", "rank_collapse",
              "identity_share"),
    )  # fmt: skip
    whole = tuple((MEASUREMENTS[name].overall_title, number(value)) for name, value in found.overall.items())
    table = (Table(("over the whole model", "value"), whole),) if whole else ()
    return Section("Over depth", tables=table, figures=curves)


def usable(value: float | None, logarithmic: bool) -> float | None:
    """What a curve can show."""
    if value is None or not math.isfinite(value) or (logarithmic and value <= 0):
        return None
    return value


def numbered(found: Inspection) -> tuple[str, ...]:
    """The sites as an axis shows them; the heat map has their names."""
    return tuple(str(index) for index in range(1, len(found.sites) + 1))


def distributions(found: Inspection) -> Section:
    """Of sigma over tokens, of gamma over channels."""
    spreads = [dict(map(tuple, site.details["sigma"]["tokens"]["bins"])) for site in found.sites]
    edges = sorted({edge for bins in spreads for edge in bins})
    names = tuple(site.site for site in found.sites)
    shares = tuple(tuple(bins.get(edge, 0) / max(sum(bins.values()), 1) for edge in edges) for bins in spreads)
    figures: list[Figure | Heatmap] = []
    if edges:
        columns = tuple(f"{edge:.3g}" for edge in edges)
        hovers = tuple(
            tuple(f"{name}\nsigma from {column}: {share:.1%}" for column, share in zip(columns, row, strict=True))
            for name, row in zip(names, shares, strict=True)
        )
        title = "sigma, what each token is divided by: share of the tokens in each bin"
        figures.append(Heatmap(title, numbered(found), columns, shares, "share", "sigma, from", "site", hovers))
    for name in ("gamma", "beta"):
        quantiles = [site.details["gamma_outliers"][name] or {} for site in found.sites]
        series = {share: tuple(each.get(share) for each in quantiles) for share in QUANTILES}
        if any(quantiles):
            title = f"{name}: quantiles over the channels"
            figures.append(Figure(title, numbered(found), series, name, lines=True, x_label=ORDER, names=names))
    return Section("Distributions", figures=tuple(figures))


def worst(found: Inspection) -> Section:
    """The tokens and channels that stand out most."""
    tokens = [
        (WORST[name], site.site, place(entry), number(entry["value"]))
        for name in WORST
        for site, entry in sorted(
            ((site, entry) for site in found.sites for entry in site.details.get(name, {}).get("worst", ())[:1]),
            key=lambda pair: pair[1]["value"] * (1 if WORST[name].startswith("least") else -1),
        )[:LISTED]
    ]
    tokens += [
        (MEASUREMENTS[name].title, site.site, place(entry), number(entry["value"]))
        for name in ("nonfinite", "massive_activations")
        for site in found.sites
        for entry in site.details[name]["worst"]
    ]
    channels = tuple(
        (MEASUREMENTS[name].title, site.site, ", ".join(map(str, site.details[name]["channels"])))
        for name in ("outlier_channels", "dead_channels", "gamma_outliers")
        for site in found.sites
        if site.details[name]["channels"]
    )
    tables = [Table(("token with the", "site", "where", "value"), tuple(tokens), labels=3)]
    if channels:
        tables.append(Table(("measurement", "site", "channels"), channels, labels=3))
    text = "Of each measurement the three sites that have the worst. Batches, sequences and tokens count from 0."
    return Section("Worst tokens and channels", (text,), tuple(tables))


def legend(found: Inspection) -> Section:
    """What each measurement is, and its range over the sites."""
    rows = tuple(
        (each.title, each.formula, each.healthy, each.source, *ends(found, name)) for name, each in MEASUREMENTS.items()
    )
    text = "x is the stream, f the branch, z = x + f, y = norm(z). Most limits are rules of thumb, marked with a star."
    columns = ("measurement", "formula", "healthy", "source", "least", "most")
    return Section("The measurements", (text,), (Table(columns, rows, labels=4),))


def facts(found: Inspection) -> dict[str, str]:
    overhead = found.overhead
    skipped = {f"no site: {name}": reason for name, reason in found.skipped.items()}
    return {
        "Machine": f"{cpu_model()}, {count(torch.get_num_threads(), 'thread')}, torch {torch.__version__}",
        "Overhead": f"{digits(overhead.factor)} times a plain pass of {duration(overhead.plain)}",
        "Capture": duration(overhead.capture),
        "Took": duration(overhead.total),
        "Not in one piece": "; ".join(found.breaks) or "captured whole",
        **skipped,
    }
