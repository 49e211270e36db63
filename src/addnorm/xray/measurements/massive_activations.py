"""A few values that are thousands of times larger than all others."""

from __future__ import annotations

from typing import Any

from ..base import Measurement, Rule, Urgency
from ..streaming import Worst
from ..tokens import Tokens

LARGE, TIMES = 100.0, 1000.0


class MassiveActivations(Measurement):
    """The median is over all features of the real tokens of a batch."""

    name = "massive_activations"
    title = "massive activations"
    formula = "count of |z| > 100 that are at least 1000 times the median of |z|"
    source = "Sun et al. 2024, arXiv:2402.17762"
    healthy = "0; large language models have a few, always at the same channels, and need them"
    rules = (
        Rule(
            0,
            above=True,
            heuristic=False,
            urgency=Urgency.UNBALANCED,
            meaning="Massive activations: a few values hold nearly all of the token's length.",
            action="Keep these channels out of 8-bit and float16 arithmetic; where they come up in training, look at "
            "the sublayer that writes them.",
        ),
    )
    carried = True

    def __init__(self) -> None:
        self.count: int | None = None
        self.worst = Worst()

    def update(self, tokens: Tokens) -> None:
        size = tokens.z.abs()
        if not size.numel():
            return
        row, channel = ((size > LARGE) & (size >= TIMES * size.median())).nonzero(as_tuple=True)
        self.count = (self.count or 0) + len(row)
        self.worst.add(size[row, channel], tokens.where[row], channel=channel)

    @property
    def value(self) -> float | None:
        return self.count

    def details(self) -> dict[str, Any]:
        return {"worst": self.worst.kept}

    def evidence(self) -> str:
        return self.worst.words()
