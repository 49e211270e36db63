"""Does the norm divide by the data's spread, or by eps?"""

from __future__ import annotations

from typing import Any

from ..base import Measurement, Rule, Urgency
from ..streaming import Mean, PerToken
from ..tokens import Tokens

TIMES = 10  # eps


class Sigma(Measurement):
    """v is the biased variance of a token's sum, for RMSNorm the mean square; in general v + eps is
    what the norm divides by, squared."""

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
            urgency=Urgency.WRONG,
            meaning="eps dominates: these tokens are not brought to unit variance, and gradients through them are cut.",
            action="Lower eps, or find out why these tokens are almost constant: zero embeddings, or unmasked padding.",
        ),
    )

    def __init__(self) -> None:
        self.share, self.tokens = Mean(), PerToken(smallest=True)

    def update(self, tokens: Tokens) -> None:
        if not tokens.divided:
            return
        self.share.add((tokens.variance < TIMES * tokens.kind.eps).double())
        self.tokens.add(tokens.variance.sqrt(), tokens.where)

    @property
    def value(self) -> float | None:
        return self.share.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()
