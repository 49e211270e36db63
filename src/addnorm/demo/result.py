"""What `addnorm fuse` and the demonstration found: plain data, for the terminal, for a page and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Where the numbers were taken."""

    cpu: str
    threads: int
    torch: str
    transformers: str
    python: str
    system: str
    addnorm: str
    backend: str  # the one that took the Add & Norm calls


def as_close(before: float, after: float) -> bool:
    """Whether the fused model is as close to float64 as the original: at most twice its error, and a rounding."""
    return after <= 2 * before + 2**-24


@dataclass(frozen=True)
class Errors:
    """Relative to float64 as a whole, |found - float64| / |float64|, dropout off; "before" and "after"."""

    output_error: dict[str, float]  # of the last hidden states
    gradient_error: dict[str, float]  # over all parameters

    @property
    def holds(self) -> bool:
        """Whether the fused model is as close to float64 as the original."""
        return all(as_close(**error) for error in (self.output_error, self.gradient_error))


@dataclass(frozen=True)
class Fused:
    """What fusing did to a local model. Times are medians of interleaved runs in one process, in seconds."""

    path: str
    model: str
    training: bool
    machine: Machine
    report: dict[str, Any]  # of the fused model: {"fused", "skipped", "sites": [...]}, see addnorm.fuse
    errors: Errors
    seconds: dict[str, float]  # "before" and "after"

    @property
    def speedup(self) -> float:
        return self.seconds["before"] / self.seconds["after"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready types, the derived numbers among them."""
        result = asdict(self)
        errors = result.pop("errors")
        return {**result, **errors, "holds": self.errors.holds, "speedup": self.speedup}


@dataclass(frozen=True)
class Model:
    """What was run, and on what."""

    name: str
    layers: int
    width: int
    parameters: int
    text: str  # title and author
    sentences: int


@dataclass(frozen=True)
class Agreement:
    """The embeddings of all sentences, fused, original and in float64. Lengths are 1, so differences are relative."""

    sentences: int
    difference: float  # largest |fused - original|
    original_error: float  # largest |original - float64|
    fused_error: float  # largest |fused - float64|
    cosine: float  # smallest cosine of a sentence's fused and original embedding
    output_original_error: float  # as in `Errors`
    output_fused_error: float
    gradient_original_error: float
    gradient_fused_error: float

    @property
    def holds(self) -> bool:
        """Whether the fused model is as close to float64 as the original."""
        return (
            as_close(self.original_error, self.fused_error)
            and as_close(self.output_original_error, self.output_fused_error)
            and as_close(self.gradient_original_error, self.gradient_fused_error)
        )


@dataclass(frozen=True)
class Query:
    """A question and the sentence nearest to it, before and after."""

    text: str
    before: str
    after: str
    similarity_before: float
    similarity_after: float

    @property
    def same(self) -> bool:
        return self.before == self.after


@dataclass(frozen=True)
class Workload:
    """One measured use of the model. Times are medians of interleaved runs in one process, in seconds.

    ``sites_*`` are all Add & Norm calls alone (add, norm, and dropout where there is any; with their backward where
    the workload trains), on the tensors that they had in the model. ``captured`` is the model run from its captured
    graph with nothing fused: what lies between ``before`` and ``captured`` is not Add & Norm's doing.
    """

    name: str
    batch: int
    tokens: int  # per sentence, padding included
    training: bool
    dropout: float  # 0 where it is off
    before: float
    captured: float
    after: float
    sites_before: float
    sites_after: float

    @property
    def speedup(self) -> float:
        """Of the whole."""
        return self.before / self.after

    @property
    def sites_speedup(self) -> float:
        """Of the Add & Norm calls alone."""
        return self.sites_before / self.sites_after

    @property
    def share(self) -> float:
        """The part of the whole that Add & Norm had before, 0 to 1."""
        return self.sites_before / self.before

    @property
    def limit(self) -> float:
        """The speed-up of the whole if Add & Norm took no time at all."""
        return 1 / (1 - min(self.share, 0.99))


@dataclass(frozen=True)
class DemoResult:
    """All that the demonstration found."""

    machine: Machine
    model: Model
    report: dict[str, Any]  # of the fused model: {"fused", "skipped", "sites": [...]}, see addnorm.fuse
    agreement: Agreement
    queries: tuple[Query, ...]
    workloads: tuple[Workload, ...]
    seconds: float  # that the whole demonstration took

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready types, the derived numbers among them."""
        result = asdict(self)
        result["agreement"]["holds"] = self.agreement.holds
        for query, entry in zip(self.queries, result["queries"], strict=True):
            entry["same"] = query.same
        for workload, entry in zip(self.workloads, result["workloads"], strict=True):
            for name in ("speedup", "sites_speedup", "share", "limit"):
                entry[name] = getattr(workload, name)
        return result
