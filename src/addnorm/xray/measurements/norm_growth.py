"""How the stream grows over depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..base import Finding, Measurement, Rule, Urgency, broken
from ..streaming import PerToken
from ..tokens import Tokens

FEWEST = 4  # sites, below which a slope says little


class NormGrowth(Measurement):
    """Per site the length of the stream after it; for the model the slope, by least squares, l = 1, 2, ... the site."""

    name = "norm_growth"
    title = "stream norm"
    formula = "mean over tokens of |x_l|; for the model the slope of log |x_l| over log l"
    source = (
        "independent branches of one size give 0.5 (pre-norm at initialisation: Xiong et al. 2020, arXiv:2002.04745)"
    )
    healthy = "a slope of about 0 with post-norm, 0.5 with pre-norm, at most 1"
    rules = (
        Rule(
            1.0,
            above=True,
            heuristic=True,
            urgency=Urgency.UNSTABLE,
            meaning="The stream grows faster than by branches of one size: later branches add up or explode.",
            action="Find the site where the curve bends; scale its branch, or norm its output (Peri-LN).",
        ),
    )
    whole = True
    overall_title = "growth of the stream: slope of log |x_l| over log l"

    def __init__(self) -> None:
        self.tokens = PerToken()

    def update(self, tokens: Tokens) -> None:
        self.tokens.add(tokens.carried.norm(dim=-1), tokens.where)

    @property
    def value(self) -> float | None:
        return self.tokens.mean.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()

    @classmethod
    def overall(cls, sites: Sequence[Measurement]) -> float | None:
        points = [(math.log(i), math.log(s.value)) for i, s in enumerate(sites, 1) if s.value]
        if len(points) < FEWEST:
            return None
        centre = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
        above = sum((a - centre[0]) * (b - centre[1]) for a, b in points)
        return above / sum((a - centre[0]) ** 2 for a, _ in points)

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        """With the site at which the stream grows most over the one before."""
        lengths = [(name, site.value) for name, site in sites.items() if site.value]
        steps = {name: after / before for (_, before), (name, after) in pairwise(lengths)}
        most = max(steps, key=lambda name: steps[name], default="")
        evidence = f"most at {most}: {steps[most]:.3g} times" if most else ""
        yield from broken(cls, "", cls.overall(list(sites.values())), evidence)
