"""NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from ..base import Finding, Measurement, Rule, Urgency
from ..streaming import Where, Worst
from ..tokens import Tokens


class NonFinite(Measurement):
    """The other measurements leave out tokens with such values. What is wrong forward spoils every gradient, so that
    gradients are warned of only where the forward is sound: at the site through which the first bad one came back."""

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
            urgency=Urgency.WRONG,
            meaning="NaN or infinity.",
            action="Look at the first site that has any: at its branch, its inputs, and whether its type overflows.",
        ),
    )
    carried = True

    def __init__(self) -> None:
        self.forward = self.backward = 0
        self.worst = Worst()

    def update(self, tokens: Tokens) -> None:
        self.forward += int(tokens.nonfinite.sum())
        self.worst.add(tokens.nonfinite, tokens.left_out)

    def gradient(self, rows: Tensor, where: Where, *, identity: bool) -> None:
        self.backward += 0 if identity else int((~rows.isfinite()).sum())

    @property
    def value(self) -> float | None:
        return self.forward + self.backward

    def details(self) -> dict[str, Any]:
        return {"worst": self.worst.kept}

    def evidence(self) -> str:
        most = f", most of them: {self.worst.words(1)}" if self.worst.kept else ""
        return f"{self.forward} forward, {self.backward} in gradients{most}"

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        found, order = list(super().findings(sites)), list(sites)
        forward = [each for each in found if cast(NonFinite, sites[each.site]).forward]
        yield from forward
        if found and not forward:
            last = order.index(found[-1].site)
            yield replace(found[-1], site=order[min(last + 1, len(order) - 1)])
