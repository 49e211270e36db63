"""Do real tokens see the padding?"""

from __future__ import annotations

from ..base import Measurement, Rule


class PaddingLeakage(Measurement):
    """The model runs twice on the first batch that has padding and at the same shape; only what stands in the padding
    differs. A token whose output became NaN or infinite counts as an infinite change."""

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
            meaning="Padding leaks into real tokens: results depend on what else is in the batch.",
            action="Pass the attention mask through; mask before every mean, convolution or BatchNorm over tokens.",
        ),
    )

    def __init__(self) -> None:
        self.largest: float | None = None

    def repadded(self, change: float) -> None:
        self.largest = max(self.largest or 0.0, change)

    @property
    def value(self) -> float | None:
        return self.largest
