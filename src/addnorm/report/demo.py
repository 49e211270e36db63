"""The demonstration's result as a document."""

from __future__ import annotations

from collections.abc import Callable

from ..demo.result import Agreement, DemoResult, Query, Workload
from .document import Document, Figure, Section, Table, digits, duration, ratio


def document(result: DemoResult) -> Document:
    """What fusing did to a real model: what was fused, whether it agrees, what it gains, what limits the gain."""
    sections = (sites(result), agreement(result.agreement), queries(result.queries), times(result.workloads))
    return Document("addnorm demo", summary(result), sections, facts(result))


def summary(result: DemoResult) -> tuple[str, ...]:
    """The findings in a few sentences."""
    model, agreed = result.model, result.agreement
    same, asked = sum(query.same for query in result.queries), len(result.queries)
    verdict = "is as close to float64 as the original" if agreed.holds else "is FURTHER from float64 than the original"
    lines = [
        f"{model.name} ({model.layers} layers, width {model.width}, {model.parameters / 1e6:.1f} million "
        f"parameters) on {model.sentences} sentences of {model.text}.",
        f"{result.report['fused']} Add & Norm sites fused, {result.report['skipped']} left as they were.",
        f"The fused model {verdict}; {same} of {asked} questions find the same sentence.",
    ]
    lines += [
        f"{w.name}: Add & Norm alone {ratio(w.sites_speedup)}, the whole {ratio(w.speedup)}. It was {percent(w.share)} "
        f"of the time, so that no kernel could gain more than {ratio(w.limit)}."
        for w in result.workloads
    ]
    return tuple(lines)


def sites(result: DemoResult) -> Section:
    """Every norm call of the model, and what became of it."""
    rows = tuple(
        (
            site["norm"] or "(the model itself)",
            "fused" if site["fused"] else "left",
            " + ".join((*site["folded"], f"{site['kind']} norm")) if site["fused"] else site["reason"],
            site["backend"],
        )
        for site in result.report["sites"]
    )
    return Section("Sites", tables=(Table(("norm", "outcome", "what", "backend"), rows, labels=4),))


def agreement(found: Agreement) -> Section:
    """Errors of the original and of the fused model against float64."""
    rows = (
        ("embeddings, largest error", f"{found.original_error:.2e}", f"{found.fused_error:.2e}"),
        ("gradients, relative error", f"{found.gradient_original_error:.2e}", f"{found.gradient_fused_error:.2e}"),
    )
    text = (
        f"Largest difference between an embedding before and after: {found.difference:.2e}; smallest cosine: "
        f"{found.cosine:.9f}. Embeddings have length 1.",
    )
    return Section("Agreement with float64", text, (Table(("", "original", "fused"), rows),))


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
    cells: dict[str, Callable[[Workload], str]] = {
        "sentences x tokens": lambda w: f"{w.batch}x{w.tokens}",
        "dropout": lambda w: f"{w.dropout:g}",
        "before": lambda w: duration(w.before),
        "captured": lambda w: duration(w.captured),
        "after": lambda w: duration(w.after),
        "gain": lambda w: ratio(w.speedup),
        "Add & Norm alone, before": lambda w: duration(w.sites_before),
        "Add & Norm alone, after": lambda w: duration(w.sites_after),
        "gain of Add & Norm alone": lambda w: ratio(w.sites_speedup),
        "Add & Norm's share, before": lambda w: percent(w.share),
        "limit of the gain": lambda w: ratio(w.limit),
    }
    rows = tuple((name, *(cell(w) for w in workloads)) for name, cell in cells.items())
    columns = ("", *(w.name for w in workloads))
    text = (
        "Medians of interleaved runs in one process. Captured: the model run from its captured graph with nothing "
        "fused, so that what capture itself gains is seen apart. Limit: the gain of the whole if Add & Norm took no "
        "time at all.",
    )
    figure = Figure(
        title="Add & Norm's part of the time, before and after",
        categories=tuple(w.name for w in workloads),
        series={
            "before": tuple(100 * w.share for w in workloads),
            "after": tuple(100 * w.sites_after / w.after for w in workloads),
        },
        unit="% of the whole",
    )
    return Section("Times", text, (Table(columns, rows),), (figure,))


def facts(result: DemoResult) -> dict[str, str]:
    """Where the numbers were taken."""
    machine = result.machine
    return {
        "CPU": f"{machine.cpu}, {machine.threads} threads",
        "addnorm": f"{machine.addnorm}, backend {machine.backend}",
        "torch": machine.torch,
        "transformers": machine.transformers,
        "Python": machine.python,
        "System": machine.system,
        "Took": duration(result.seconds),
    }


def percent(part: float) -> str:
    return f"{digits(100 * part)} %"
