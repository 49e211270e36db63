"""Does the norm divide by the data's spread, or by eps?"""

from __future__ import annotations

from typing import Any

from ..base import Measurement, Rule
from ..streaming import Histogram, Mean, Worst
from ..tokens import Tokens

TIMES = 10  # eps


class Sigma(Measurement):
    """v is the biased variance of a token's sum, for RMSNorm the mean square."""

    name = "sigma"
    title = "rows ruled by eps"
    formula = "share of tokens with v < 10 eps"
    source = "y = xhat * sqrt(v / (v + eps)): at v = 10 eps the norm falls 5 % short; limits are rules of thumb"
    healthy = "0"
    rules = (
        Rule(
            0.01,
            above=True,
            heuristic=True,
            meaning="eps dominates: these tokens are not brought to unit variance, and gradients through them are cut.",
            action="Lower eps, or find out why these tokens are almost constant: zero embeddings, or unmasked padding.",
        ),
    )

    def __init__(self) -> None:
        self.mean, self.spread, self.worst = Mean(), Histogram(), Worst(smallest=True)

    def update(self, tokens: Tokens) -> None:
        sigma = tokens.variance.sqrt()
        self.mean.add((tokens.variance < TIMES * tokens.kind.eps).double())
        self.spread.add(sigma)
        self.worst.add(sigma, {"sequence": tokens.sequence, "position": tokens.position}, tokens.batch)

    @property
    def value(self) -> float | None:
        return self.mean.value

    def details(self) -> dict[str, Any]:
        return {"tokens": self.spread.summary(), "worst": self.worst.kept}
