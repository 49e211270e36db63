"""What fusing did to a local model, as a document."""

from __future__ import annotations

from ..demo.local import Fused
from .document import Document, Section, Table, duration, ratio


def document(result: Fused) -> Document:
    """The sites, the agreement and the times."""
    verdict = "is as close to float64 as the original" if result.holds else "is FURTHER from float64 than the original"
    use = "training step" if result.training else "inference"
    plain = sum(site["plain"] for site in result.report["sites"])
    summary = (
        f"{result.report['fused']} Add & Norm calls fused, {result.report['skipped']} norm calls not, of which {plain} "
        "have no sum before them and run as a fused norm.",
        f"The fused model {verdict}. Its {use} takes {duration(result.seconds['after'])}, "
        f"before {duration(result.seconds['before'])}: {ratio(result.speedup)}.",
    )
    sites = tuple(
        (
            site["norm"] or "(the model itself)",
            "fused" if site["fused"] else "plain" if site["plain"] else "left",
            " + ".join((*site["folded"], f"{site['kind']} norm")) if site["fused"] else site["reason"],
            site["backend"],
        )
        for site in result.report["sites"]
    )
    rows = tuple(
        (name, f"{error['before']:.2e}", f"{error['after']:.2e}")
        for name, error in (("output", result.output_error), ("gradients", result.gradient_error))
    )
    use_row = (use, duration(result.seconds["before"]), duration(result.seconds["after"]), ratio(result.speedup))
    sections = (
        Section("Sites", tables=(Table(("norm", "outcome", "what", "backend"), sites, labels=4),)),
        Section("Relative error against float64", tables=(Table(("", "before", "after"), rows),)),
        Section(
            "Times",
            ("Medians of interleaved runs in one process.",),
            (Table(("", "before", "after", "gain"), (use_row,)),),
        ),
    )
    return Document("addnorm fuse", summary, sections, {"Model": f"{result.model}, {result.path}"})
