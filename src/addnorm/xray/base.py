"""What a measurement is: its formula, when its value is a warning, and how it adds up over batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, ClassVar

from torch import Tensor

from .streaming import Where
from .tokens import Tokens


class Urgency(IntEnum):
    """What is at stake. It orders the findings."""

    NOTE = 0  # good to know before pruning or quantising
    UNBALANCED = 1  # parts of the model do nothing, or nearly everything
    UNSTABLE = 2  # the signal or its gradient is lost, or explodes
    WRONG = 3  # results are wrong, or about to be

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Rule:
    """A limit, and what it means to be beyond it."""

    limit: float
    above: bool  # whether values above the limit are warned of; else those below
    heuristic: bool  # whether the limit is a rule of thumb; else it is a paper's or follows from the arithmetic
    urgency: Urgency
    meaning: str
    action: str

    def broken(self, value: float | None) -> bool:
        """A value that is NaN breaks no rule: `nonfinite` tells of it."""
        return value is not None and (value > self.limit if self.above else value < self.limit)

    def severity(self, value: float | None) -> float | None:
        """How near: 1 at the limit, more beyond, 0 far away."""
        if value is None or math.isnan(value):
            return None
        top, bottom = (value, self.limit) if self.above or self.limit < 0 else (self.limit, value)
        if bottom != 0 and top / bottom >= 0:
            return top / bottom
        return math.inf if self.broken(value) else 0.0


@dataclass(frozen=True)
class Finding:
    """One warning."""

    site: str  # "" where it is about the whole model
    measurement: str
    value: float
    threshold: float
    severity: float  # how many times beyond the threshold
    urgency: Urgency
    heuristic: bool
    meaning: str
    action: str
    evidence: str = ""  # which tokens, which channels

    def __str__(self) -> str:
        kind = "rule of thumb" if self.heuristic else "limit"
        evidence = f" ({self.evidence})" if self.evidence else ""
        return (
            f"{self.site or 'the model'}: {self.measurement} {self.value:.3g}, {kind} {self.threshold:g}: "
            f"{self.meaning}{evidence} {self.action}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "urgency": str(self.urgency)}


class Measurement(ABC):
    """One quantity at one site. It is told of every batch and keeps no tensor of a batch's size."""

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    healthy: ClassVar[str]
    rules: ClassVar[tuple[Rule, ...]] = ()
    overall_title: ClassVar[str] = ""  # of the number for the whole model
    whole: ClassVar[bool] = False  # whether the rules judge the sites together, not each
    carried: ClassVar[bool] = False  # whether what is wrong stays in the stream, so that it comes from the first site

    def update(self, tokens: Tokens) -> None:  # noqa: B027
        """The real tokens of one call of the site."""

    def gradient(self, rows: Tensor, where: Where, *, identity: bool) -> None:  # noqa: B027
        """The loss's gradient on the stream after the site, real tokens; `identity`: with all branches detached."""

    def repadded(self, changes: Tensor, where: Where) -> None:  # noqa: B027
        """The largest change of each real token's output when only the padding's content changed, ``(rows,)``."""

    @property
    @abstractmethod
    def value(self) -> float | None:
        """The number for the site; None where nothing was there to measure."""

    def details(self) -> dict[str, Any]:
        """More than the number, JSON-ready."""
        return {}

    def evidence(self) -> str:
        """Which tokens or channels are meant, in words."""
        return ""

    @classmethod
    def overall(cls, sites: Sequence[Measurement]) -> float | None:
        """The number for the whole model, where there is one."""
        return None

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        """The rules, applied to each site."""
        for site, measured in sites.items():
            yield from broken(cls, site, measured.value, measured.evidence())


def broken(measurement: type[Measurement], site: str, value: float | None, evidence: str) -> Iterator[Finding]:
    """The findings that a value is."""
    for rule in measurement.rules:
        if value is not None and rule.broken(value):
            severity = rule.severity(value) or math.inf
            yield Finding(site, measurement.name, value, rule.limit, severity, rule.urgency, rule.heuristic,
                          rule.meaning, rule.action, evidence)  # fmt: skip


def others(site: str, values: Mapping[str, float | None], share: float) -> float | None:
    """A quantile of what the other sites have; None where there is no other.

    >>> others("a", {"a": 9.0, "b": 1.0, "c": 3.0, "d": 2.0}, 0.5)
    2.0
    """
    known = sorted(value for name, value in values.items() if name != site and value is not None)
    return known[int(share * (len(known) - 1))] if known else None


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """A few numbers in words.

    >>> listed([3, 5]), listed(range(10), most=2)
    ('3, 5', '0, 1 and 8 more')
    """
    shown = ", ".join(str(number) for number in list(numbers)[:most])
    rest = len(numbers) - most
    return f"{shown} and {rest} more" if rest > 0 else shown
