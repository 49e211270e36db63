"""What an inspection found: plain data that prints well."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..as_json import finite
from ..words import count
from .base import Finding, Urgency
from .measurements import MEASUREMENTS


@dataclass(frozen=True)
class SiteResult:
    """One Add & Norm site over all batches."""

    site: str  # path of the module that calls the norm, with the number of the call where it calls several
    norm: str  # "layer", "rms"...: one of addnorm.norms
    carry: str  # what the next block adds to: "z", the sum (pre-norm), or "y", its norm (post-norm)
    eps: float
    width: int
    tokens: int  # real ones
    padding: int  # rows left out as padding
    values: dict[str, float | None]  # of each measurement; None where nothing was there to measure
    details: dict[str, dict[str, Any]]  # of those measurements that have more to tell


@dataclass(frozen=True)
class Overhead:
    """What it cost, in seconds: one pass over the first batch, plain and inspected, and the capture before it."""

    plain: float
    inspected: float
    capture: float
    total: float  # the whole inspection

    @property
    def factor(self) -> float:
        return self.inspected / self.plain


@dataclass(frozen=True)
class Inspection:
    """Every measurement at every site, and the warnings."""

    model: str
    batches: int
    backward: bool
    sites: tuple[SiteResult, ...]  # in order of execution
    overall: dict[str, float]  # the numbers that belong to the whole model
    findings: tuple[Finding, ...]  # the most urgent first, then in the order of the measurements and the sites
    skipped: dict[str, str]  # norm calls that are no Add & Norm sites, and why
    breaks: tuple[str, ...]  # why parts of the model could not be captured in one piece
    overhead: Overhead

    @property
    def first(self) -> tuple[Finding, ...]:
        """What to look at first: all findings of one site, or those of the whole model.

        Only the most urgent findings choose it. What is carried on in the stream began at the first site that has it;
        of the rest the one furthest beyond its limit counts, because what is less may follow from it. Where the two
        are at different sites, it is the earlier one.
        """
        top = max((finding.urgency for finding in self.findings), default=Urgency.NOTE)
        urgent = [finding for finding in self.findings if finding.urgency == top and finding.site]
        order = {site.site: index for index, site in enumerate(self.sites)}
        carried = [finding for finding in urgent if MEASUREMENTS[finding.measurement].carried]
        local = [finding for finding in urgent if finding not in carried]
        begins = min(carried, key=lambda finding: order[finding.site], default=None)
        worst = max(local, key=lambda finding: finding.severity, default=None)
        sites = [finding.site for finding in (begins, worst) if finding is not None]
        chosen = min(sites, key=lambda site: order[site], default="")
        return tuple(finding for finding in self.findings if finding.site == chosen)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the measurements explained. What is NaN or infinite is None, as what was not measured is."""
        found = asdict(self)
        found["findings"] = [finding.to_dict() for finding in self.findings]
        found["first"] = [finding.to_dict() for finding in self.first]
        found["overhead"]["factor"] = self.overhead.factor
        found["measurements"] = {name: explained(name) for name in MEASUREMENTS}
        return finite(found)

    def __str__(self) -> str:
        mode = "forward and backward" if self.backward else "forward"
        seen = f"{count(self.sites[0].tokens, 'token')} in {count(self.batches, 'batch')}"
        lines = [
            f"{self.model}: {count(len(self.sites), 'Add & Norm site')}, {seen}, {mode}; "
            f"{self.overhead.factor:.1f} times a plain pass, after {self.overhead.capture:.1f} s of capture",
            count(len(self.findings), "finding"),
            *([f"look first at {self.first[0].site or 'the model'}"] if self.first else []),
            *(f"  {finding}" for finding in self.findings),
        ]
        names = [name for name in MEASUREMENTS if any(site.values[name] is not None for site in self.sites)]
        for name in names:
            values = [value for site in self.sites if (value := site.values[name]) is not None]
            whole = f"; over the model {self.overall[name]:.3g}" if name in self.overall else ""
            lines.append(f"  {MEASUREMENTS[name].title}: {min(values):.3g} to {max(values):.3g}{whole}")
        lines += [f"  no site: {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"  not captured in one piece: {reason}" for reason in self.breaks]
        return "\n".join(lines)


def explained(name: str) -> dict[str, Any]:
    """A measurement in words."""
    measurement = MEASUREMENTS[name]
    texts = {key: getattr(measurement, key) for key in ("title", "formula", "source", "healthy")}
    return {**texts, "rules": [{**asdict(rule), "urgency": str(rule.urgency)} for rule in measurement.rules]}
