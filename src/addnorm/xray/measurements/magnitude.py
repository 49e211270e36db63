"""How large the numbers are, and whether float16 could hold them."""

from __future__ import annotations

from typing import Any

import torch

from ..base import Measurement, Rule, Urgency
from ..streaming import PerToken
from ..tokens import Tokens


class Magnitude(Measurement):
    """Of the branch, the stream and their sum."""

    name = "magnitude"
    title = "largest value"
    formula = "max over tokens and features of |x|, |f| and |x + f|"
    source = "float16 ends at 65504 (IEEE 754 binary16)"
    healthy = "far below 6e4 where float16 is meant"
    rules = (
        Rule(
            6e4,
            above=True,
            heuristic=False,
            urgency=Urgency.WRONG,
            meaning="Overflows in float16, or is about to.",
            action="Run this site in bfloat16 or float32, or scale the branch before the sum.",
        ),
    )
    carried = True

    def __init__(self) -> None:
        self.tokens = PerToken()

    def update(self, tokens: Tokens) -> None:
        if not tokens.z.numel():
            return
        largest = torch.maximum(torch.maximum(tokens.x.abs(), tokens.residual.abs()), tokens.z.abs()).max(-1)
        self.tokens.add(largest.values, tokens.where, channel=largest.indices)

    @property
    def value(self) -> float | None:
        return self.tokens.spread.largest if self.tokens.mean.count else None

    def details(self) -> dict[str, Any]:
        return self.tokens.details()

    def evidence(self) -> str:
        return self.tokens.worst.words(1)
