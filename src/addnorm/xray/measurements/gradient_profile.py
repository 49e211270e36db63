"""How the gradient changes over depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base import Finding, Measurement, Rule, Urgency, broken
from ..streaming import PerToken, Where


class GradientProfile(Measurement):
    """Of the real tokens; over several batches the root of the summed squares."""

    name = "gradient_profile"
    title = "gradient norm"
    formula = "|dL/dx_l| on the stream after site l; for the model the largest over the smallest"
    source = "He et al. 2016, arXiv:1603.05027; Xiong et al. 2020, arXiv:2002.04745"
    healthy = "a ratio below 100"
    rules = (
        Rule(
            100.0,
            above=True,
            heuristic=True,
            urgency=Urgency.UNSTABLE,
            meaning="Gradients vanish or explode over depth.",
            action="See at which site the curve bends; use pre-norm, or DeepNorm's scales with post-norm.",
        ),
    )
    whole = True
    overall_title = "gradient norm over depth: largest / smallest"

    def __init__(self) -> None:
        self.squares: float | None = None
        self.tokens = PerToken()

    def gradient(self, rows: Tensor, where: Where, *, identity: bool) -> None:
        if not identity:
            self.tokens.add(rows.norm(dim=-1), where)
            self.squares = (self.squares or 0.0) + float(rows.square().sum())

    @property
    def value(self) -> float | None:
        return None if self.squares is None else math.sqrt(self.squares)

    def details(self) -> dict[str, Any]:
        return {} if self.squares is None else self.tokens.details()

    @classmethod
    def overall(cls, sites: Sequence[Measurement]) -> float | None:
        norms = [site.value for site in sites if site.value is not None and math.isfinite(site.value)]
        if not norms or max(norms) == 0:
            return None
        return max(norms) / min(norms) if min(norms) > 0 else math.inf

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        norms = {name: site.value for name, site in sites.items() if site.value is not None}
        ends = [f"{norms[name]:.3g} at {name}" for name in sorted(norms, key=lambda name: norms[name])]
        evidence = f"from {ends[0]} to {ends[-1]}" if ends else ""
        yield from broken(cls, "", cls.overall(list(sites.values())), evidence)
