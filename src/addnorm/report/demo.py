"""The demonstration's result as a document: that of `addnorm fuse`, and what the demonstration adds."""

from __future__ import annotations

from ..demo.result import Agreement, DemoResult, Query, Workload
from ..words import count
from . import fuse
from .document import Document, Figure, Section, Table, digits, duration, ratio


def document(result: DemoResult) -> Document:
    """What fusing did to a real model: what was fused, whether it agrees, what it gains, what limits the gain."""
    sections = (
        fuse.sites(result.report),
        agreed(result.agreement),
        queries(result.queries),
        times(result.workloads),
    )
    facts = {**fuse.facts(result.machine), "Took": duration(result.seconds)}
    return Document("addnorm demo", summary(result), sections, facts)


def summary(result: DemoResult) -> tuple[str, ...]:
    """The findings in a few sentences."""
    model = result.model
    same, asked = sum(query.same for query in result.queries), len(result.queries)
    lines = [
        f"{model.name} ({count(model.layers, 'layer')}, width {model.width}, {model.parameters / 1e6:.1f} million "
        f"parameters) on {count(model.sentences, 'sentence')} of {model.text}.",
        *fuse.summary(result.report, result.agreement.holds),
        f"{same} of {count(asked, 'question')} find the same sentence.",
    ]
    lines += [
        f"{w.name}: Add & Norm alone {ratio(w.sites_speedup)}, the whole {ratio(w.speedup)}. It was {percent(w.share)} "
        f"of the time, so that a kernel for it alone could not gain more than {ratio(w.limit)}."
        for w in result.workloads
    ]
    if result.report.get("drawn"):
        lines.append("In training the kernels draw the dropouts beside the sites too; what that gains is in the whole.")
    return tuple(lines)


def agreed(found: Agreement) -> Section:
    """Errors of the original and of the fused model against float64."""
    text = (
        f"Largest difference between an embedding before and after: {found.difference:.2e}; smallest cosine: "
        f"{found.cosine:.9f}. Embeddings have length 1.",
    )
    errors = {
        "embeddings, largest error": (found.original_error, found.fused_error),
        "outputs, relative error": (found.output_original_error, found.output_fused_error),
        "gradients, relative error": (found.gradient_original_error, found.gradient_fused_error),
    }
    return fuse.agreement(errors, text)


def queries(asked: tuple[Query, ...]) -> Section:
    """What the model is for: the nearest sentence to each question."""
    rows = tuple(
        (
            query.text,
            query.after if query.same else f"before: {query.before} after: {query.after}",
            "same" if query.same else "DIFFERS",
            f"{query.similarity_before:.6f}",
            f"{query.similarity_after:.6f}",
        )
        for query in asked
    )
    columns = ("question", "nearest sentence", "", "before", "after")
    return Section("Questions", tables=(Table(columns, rows, labels=3),))


def times(workloads: tuple[Workload, ...]) -> Section:
    """The whole model and Add & Norm alone, before and after."""
    uses = {w.name: cells(w) for w in workloads}
    text = (
        "Captured: the model run from its captured graph with nothing fused, so that what capture itself gains is seen "
        "apart. Limit: the gain of the whole if Add & Norm took no time at all.",
    )
    figure = Figure(
        title="Add & Norm's part of the time, before and after",
        categories=tuple(uses),
        series={
            "before": tuple(100 * w.share for w in workloads),
            "after": tuple(100 * w.sites_after / w.after for w in workloads),
        },
        unit="% of the whole",
    )
    return fuse.times(uses, text, (figure,))


def cells(w: Workload) -> dict[str, str]:
    """One use's column of the table."""
    return {
        "sentences x tokens": f"{w.batch}x{w.tokens}",
        "dropout": f"{w.dropout:g}",
        **fuse.gain(w.before, w.after),
        "captured": duration(w.captured),
        "Add & Norm alone, before": duration(w.sites_before),
        "Add & Norm alone, after": duration(w.sites_after),
        "gain of Add & Norm alone": ratio(w.sites_speedup),
        "Add & Norm's share, before": percent(w.share),
        "limit of the gain": ratio(w.limit),
    }


def percent(part: float) -> str:
    return f"{digits(100 * part)} %"
