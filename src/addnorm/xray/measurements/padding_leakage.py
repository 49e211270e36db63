"""Do real tokens see the padding?"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..base import Measurement, Rule, Urgency
from ..streaming import PerToken, Where


class PaddingLeakage(Measurement):
    """The model runs twice on the first batch that has padding and at the same shape; only what stands in the padding
    differs. A token whose output became NaN or infinite counts as an infinite change, and so does every token at a site
    that ran only once, or on another number of tokens."""

    name = "padding_leakage"
    title = "padding leakage"
    formula = "largest change of a real token's y when the padding's content changes"
    source = "masked attention gives padding a weight of exactly 0, so that nothing may change; needs a mask"
    healthy = "exactly 0"
    rules = (
        Rule(
            0,
            above=True,
            heuristic=True,
            urgency=Urgency.WRONG,
            meaning="Padding leaks into real tokens: results depend on what else is in the batch.",
            action="Pass the attention mask through; mask before every mean, convolution or BatchNorm over tokens.",
        ),
    )
    carried = True

    def __init__(self) -> None:
        self.tokens = PerToken()

    def repadded(self, changes: Tensor, where: Where) -> None:
        self.tokens.add(changes, where)

    @property
    def value(self) -> float | None:
        return self.tokens.spread.largest if self.tokens.mean.count else None

    def details(self) -> dict[str, Any]:
        return {} if self.value is None else self.tokens.details()

    def evidence(self) -> str:
        endless = "; infinite: there it gives NaN or infinity, runs on other tokens, or not at all"
        return self.tokens.worst.words(1) + (endless if self.value == math.inf else "")
