"""Does the branch point along the stream, against it, or elsewhere?"""

from __future__ import annotations

from typing import Any

from ..base import Measurement, Rule, Urgency
from ..streaming import Cosines, PerToken
from ..tokens import Tokens


class Alignment(Measurement):
    """Rows with a branch or a stream of 0 have no angle and are left out."""

    name = "alignment"
    title = "alignment"
    formula = "mean over tokens of cos(x, f)"
    source = "the angle of a residual update; limits are rules of thumb"
    healthy = "between -0.5 and 0.9; independent directions give 0"
    rules = (
        Rule(
            -0.5,
            above=False,
            heuristic=True,
            urgency=Urgency.UNBALANCED,
            meaning="The branch erases: it points against the stream.",
            action="Look whether it undoes the sublayer before it; two that cancel can be pruned together.",
        ),
        Rule(
            0.9,
            above=True,
            heuristic=True,
            urgency=Urgency.UNBALANCED,
            meaning="The branch merely rescales the stream, which the norm takes out again.",
            action="Look for a sublayer that copies its input: attention on the token itself, a linear FFN.",
        ),
    )

    def __init__(self) -> None:
        self.tokens = PerToken(smallest=True, bins=Cosines())

    def update(self, tokens: Tokens) -> None:
        length = tokens.x_norm * tokens.residual_norm
        self.tokens.add((tokens.x * tokens.residual).sum(-1) / length, tokens.where)

    @property
    def value(self) -> float | None:
        return self.tokens.mean.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()
