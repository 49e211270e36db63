"""How many digits the norm's own arithmetic can lose."""

from __future__ import annotations

import torch

from ..base import Measurement, Rule
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
            meaning="The mean is so large beside the spread that subtracting it loses digits.",
            action="Centre the stream, or use a norm with corrected statistics: addnorm's are good at any "
            "mean, torch's are not.",
        ),
    )

    def __init__(self) -> None:
        self.largest: float | None = None

    def update(self, tokens: Tokens) -> None:
        if not len(tokens.z):
            return
        dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        k = (1 + tokens.mean.square() / (tokens.variance + tokens.kind.eps)).sqrt()
        self.largest = max(self.largest or 0.0, float(k.max()) * torch.finfo(dtype).eps / 2)

    @property
    def value(self) -> float | None:
        return self.largest
