"""How large the numbers are, and whether float16 could hold them."""

from __future__ import annotations

from ..base import Measurement, Rule
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
            meaning="Overflows in float16, or is about to.",
            action="Run this site in bfloat16 or float32, or scale the branch before the sum.",
        ),
    )

    def __init__(self) -> None:
        self.largest: float | None = None

    def update(self, tokens: Tokens) -> None:
        if len(tokens.z):
            found = max(float(tensor.abs().max()) for tensor in (tokens.x, tokens.residual, tokens.z))
            self.largest = max(self.largest or 0.0, found)

    @property
    def value(self) -> float | None:
        return self.largest
