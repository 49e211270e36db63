"""NaN and infinity."""

from __future__ import annotations

from torch import Tensor

from ..base import Measurement, Rule
from ..tokens import Tokens


class NonFinite(Measurement):
    """The other measurements leave out tokens with such values."""

    name = "nonfinite"
    title = "NaN and infinity"
    formula = "count of NaN and infinite elements of z, y and the stream's gradient, in real tokens"
    source = "any is too many"
    healthy = "0"
    rules = (
        Rule(
            0,
            above=True,
            heuristic=False,
            meaning="NaN or infinity.",
            action="Look at the first site that has any: at its branch, its inputs, and whether its type overflows.",
        ),
    )

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def update(self, tokens: Tokens) -> None:
        self.forward += tokens.nonfinite

    def gradient(self, rows: Tensor, *, identity: bool) -> None:
        self.backward += 0 if identity else int((~rows.isfinite()).sum())

    @property
    def value(self) -> float | None:
        return self.forward + self.backward

    def evidence(self) -> str:
        return f"{self.forward} forward, {self.backward} in gradients"
