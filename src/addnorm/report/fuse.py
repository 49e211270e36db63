"""What fusing did to a local model, as a document; the demonstration's is made of the same parts."""

from __future__ import annotations

from typing import Any

from ..demo.result import Fused, Machine
from ..words import count
from .document import Document, Figure, Section, Table, duration, ratio


def document(result: Fused) -> Document:
    """What was fused, whether it agrees, what it gains."""
    use = "training step" if result.training else "inference"
    before, after = (result.seconds[kind] for kind in ("before", "after"))
    lines = (
        *summary(result.report, result.errors.holds),
        f"Its {use} takes {duration(after)}, before {duration(before)}: {ratio(result.speedup)}.",
    )
    errors = {
        "outputs, relative error": (result.errors.output_error["before"], result.errors.output_error["after"]),
        "gradients, relative error": (result.errors.gradient_error["before"], result.errors.gradient_error["after"]),
    }
    sections = (sites(result.report), agreement(errors), times({use: gain(before, after)}))
    model = {"Model": f"{result.model}, {result.path}"}
    return Document("addnorm fuse", lines, sections, {**model, **facts(result.machine)})


def summary(report: dict[str, Any], holds: bool) -> tuple[str, str]:
    """What was fused, and whether the fused model is right."""
    plain = sum(site["plain"] for site in report["sites"])
    alone = (
        f", of which {plain} without a sum before it {'runs' if plain == 1 else 'run'} as a fused norm" if plain else ""
    )
    verdict = "is as close to float64 as the original" if holds else "is FURTHER from float64 than the original"
    return (
        f"{count(report['fused'], 'Add & Norm call')} fused, {count(report['skipped'], 'norm call')} not{alone}.",
        f"The fused model {verdict}.",
    )


def sites(report: dict[str, Any]) -> Section:
    """Every norm call of the model, and what became of it."""
    rows = tuple(
        (
            site["norm"] or "(the model itself)",
            "fused" if site["fused"] else "plain" if site["plain"] else "left",
            " + ".join((*site["folded"], f"{site['kind']} norm")) if site["fused"] else site["reason"],
            site["backend"],
        )
        for site in report["sites"]
    )
    return Section("Sites", tables=(Table(("norm", "outcome", "what", "backend"), rows, labels=4),))


def agreement(errors: dict[str, tuple[float, float]], text: tuple[str, ...] = ()) -> Section:
    """Errors of the original and of the fused model against float64."""
    rows = tuple((name, f"{before:.2e}", f"{after:.2e}") for name, (before, after) in errors.items())
    return Section("Agreement with float64", text, (Table(("", "original", "fused"), rows),))


def gain(before: float, after: float) -> dict[str, str]:
    """Seconds of one use, before and after, as cells of its column."""
    return {"before": duration(before), "after": duration(after), "gain": ratio(before / after)}


def times(uses: dict[str, dict[str, str]], text: tuple[str, ...] = (), figures: tuple[Figure, ...] = ()) -> Section:
    """A column for each use of the model, whose cells have the same names."""
    names = next(iter(uses.values()))
    rows = tuple((name, *(cells[name] for cells in uses.values())) for name in names)
    return Section(
        "Times", ("Medians of interleaved runs in one process.", *text), (Table(("", *uses), rows),), figures
    )


def facts(machine: Machine) -> dict[str, str]:
    """Where the numbers were taken."""
    return {
        "CPU": f"{machine.cpu}, {count(machine.threads, 'thread')}",
        "addnorm": f"{machine.addnorm}, backend {machine.backend}",
        "torch": machine.torch,
        "transformers": machine.transformers,
        "Python": machine.python,
        "System": machine.system,
    }
