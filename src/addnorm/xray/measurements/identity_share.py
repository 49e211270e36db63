"""How much of the gradient comes along the skips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from ...words import count
from ..base import Finding, Measurement, Rule, Urgency
from ..streaming import PerToken, Where


class IdentityShare(Measurement):
    """A second backward with every branch detached leaves the skips and the norms on them. One warning names
    the site with the least: the shares of the others belong to the same path. Where no skip leads to the loss at all,
    as from an encoder that the decoder only attends to, there is no share."""

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
            urgency=Urgency.UNSTABLE,
            meaning="The identity path is lost: gradients reach this depth through the branches alone.",
            action="Warm up longer, or use pre-norm, DeepNorm or ReZero.",
        ),
    )

    def __init__(self) -> None:
        self.squares: dict[bool, float] = {}
        self.tokens = PerToken(smallest=True)
        self._full: Tensor | None = None  # of this batch, (rows,)

    def gradient(self, rows: Tensor, where: Where, *, identity: bool) -> None:
        norms = rows.norm(dim=-1)
        self.squares[identity] = self.squares.get(identity, 0.0) + float(norms.square().sum())
        if not identity:
            self._full = norms
        elif self._full is not None and len(self._full) == len(norms):
            self.tokens.add(norms / self._full, where)
            self._full = None

    @property
    def value(self) -> float | None:
        full, identity = self.squares.get(False), self.squares.get(True)
        if not full or identity is None:
            return None
        return math.sqrt(identity / full)

    def details(self) -> dict[str, Any]:
        return {} if self.value is None else self.tokens.details()

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        below = sorted(super().findings(sites), key=lambda finding: finding.value)
        shares = [(name, site.value) for name, site in sites.items() if site.value]
        falls = {name: after / before for (_, before), (name, after) in pairwise(shares)}
        most = max(falls, key=lambda name: falls[name], default="")
        where = f"; going back it falls most at {most}: by {falls[most]:.3g} times" if most else ""
        for finding in below[:1]:
            yield replace(finding, evidence=f"below at {len(below)} of {count(len(sites), 'site')}{where}")
