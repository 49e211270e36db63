"""How many digits the norm's own arithmetic can lose."""

from __future__ import annotations

from typing import Any

import torch

from ..base import Measurement, Rule, Urgency
from ..streaming import PerToken
from ..tokens import Tokens


class Conditioning(Measurement):
    """u is the unit roundoff of the arithmetic: float32's, also for half precision, float64's for float64. eps is
    counted with the variance, as the norm counts it. RMSNorm subtracts no mean: its k is 1."""

    name = "conditioning"
    title = "conditioning"
    formula = "largest over tokens of u * k, k = sqrt(1 + mu^2 / (v + eps))"
    source = "Chan, Golub and LeVeque 1983: the variance's condition number"
    healthy = "below 1e-3; 6e-8 is the least in float32"
    rules = (
        Rule(
            1e-3,
            above=True,
            heuristic=True,
            urgency=Urgency.WRONG,
            meaning="The mean is so large beside the spread that subtracting it loses digits.",
            action="Centre the stream, or use a norm with corrected statistics: addnorm's are good at any "
            "mean, torch's are not.",
        ),
    )

    def __init__(self) -> None:
        self.tokens = PerToken()

    def update(self, tokens: Tokens) -> None:
        if not tokens.divided:
            return
        dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        k = (1 + tokens.mean.square() / (tokens.variance + tokens.kind.eps)).sqrt()
        self.tokens.add(k * (torch.finfo(dtype).eps / 2), tokens.where)

    @property
    def value(self) -> float | None:
        return self.tokens.spread.largest if self.tokens.mean.count else None

    def details(self) -> dict[str, Any]:
        return self.tokens.details()

    def evidence(self) -> str:
        return self.tokens.worst.words(1)
