"""How much of the gradient comes along the skips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor

from ..base import Finding, Measurement, Rule


class IdentityShare(Measurement):
    """A second backward with every branch detached leaves the skips and the norms on them. One warning names
    the site with the least: the shares of the others belong to the same path."""

    name = "identity_share"
    title = "identity share"
    formula = "|dL/dx_l with all branches detached| / |dL/dx_l|, on the stream after site l"
    source = "post-norm multiplies the skip by 1/sigma at each site (Xiong et al. 2020, arXiv:2002.04745)"
    healthy = "above 1e-3; near 1 with pre-norm at initialisation"
    rules = (
        Rule(
            1e-3,
            above=False,
            heuristic=True,
            meaning="The identity path is lost: gradients reach this depth through the branches alone.",
            action="Warm up longer, or use pre-norm, DeepNorm or ReZero.",
        ),
    )

    def __init__(self) -> None:
        self.squares: dict[bool, float] = {}

    def gradient(self, rows: Tensor, *, identity: bool) -> None:
        self.squares[identity] = self.squares.get(identity, 0.0) + float(rows.square().sum())

    @property
    def value(self) -> float | None:
        full = self.squares.get(False)
        if not full:  # no gradient at all has no share
            return None
        return math.sqrt(self.squares.get(True, 0.0) / full)

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        least = sorted(super().findings(sites), key=lambda finding: finding.value)
        yield from least[:1]
