"""How the stream grows over depth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..base import Measurement, Rule
from ..streaming import Mean
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
            meaning="The stream grows faster than by branches of one size: later branches add up or explode.",
            action="Find the site where the curve bends; scale its branch, or norm its output (Peri-LN).",
        ),
    )
    whole = True

    def __init__(self) -> None:
        self.mean = Mean()

    def update(self, tokens: Tokens) -> None:
        self.mean.add(tokens.carried.norm(dim=-1))

    @property
    def value(self) -> float | None:
        return self.mean.value

    @classmethod
    def overall(cls, sites: Sequence[Measurement]) -> float | None:
        points = [(math.log(i), math.log(s.value)) for i, s in enumerate(sites, 1) if s.value]
        if len(points) < FEWEST:
            return None
        centre = [sum(axis) / len(points) for axis in zip(*points, strict=True)]
        above = sum((a - centre[0]) * (b - centre[1]) for a, b in points)
        return above / sum((a - centre[0]) ** 2 for a, _ in points)
