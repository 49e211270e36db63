"""How large the branch is beside the stream that it is added to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Finding, Measurement, Rule, Urgency, others
from ..streaming import Mean, PerToken
from ..tokens import Tokens

IDLER, LARGER = 0.1, 3.0  # how far from the other sites a branch has to be, to be called idle or too large


class ResidualRatio(Measurement):
    """A row whose stream is 0 has an infinite ratio, and 0 where its branch is 0 too.

    A site is warned of only where its branch differs from the others: small weights at the start make all branches
    small, a long stream (sinusoids in a narrow encoder) makes the ratio small, and one that starts as short as
    embeddings do is overwritten by a branch like any other.
    """

    name = "residual_ratio"
    title = "residual ratio"
    formula = "mean over tokens of |f| / |x|, f the branch, x the stream that it is added to"
    source = "the rho of Admin's analysis (Liu et al. 2020, arXiv:2004.08249), per token"
    healthy = (
        "between 0.02 and 3; warned of below where |f| is under a tenth of the other sites' upper quartile, above "
        "where it is over 3 times their median"
    )
    rules = (
        Rule(
            0.02,
            above=False,
            heuristic=True,
            urgency=Urgency.UNBALANCED,
            meaning="The branch adds almost nothing: an idle sublayer.",
            action="See whether it starts at 0 (ReZero, LayerScale) and gets gradients; else it can be pruned.",
        ),
        Rule(
            3.0,
            above=True,
            heuristic=True,
            urgency=Urgency.UNSTABLE,
            meaning="The branch overwrites the stream, so that the skip carries little.",
            action="Lower the learning rate or its last initialisation, or scale it (LayerScale, DeepNorm).",
        ),
    )

    def __init__(self) -> None:
        self.tokens, self.size = PerToken(), Mean()

    def update(self, tokens: Tokens) -> None:
        ratio = torch.where(tokens.x_norm == 0, 0.0, tokens.x_norm / tokens.residual_norm)
        self.tokens.add(ratio, tokens.where)
        self.size.add(tokens.x_norm)

    @property
    def value(self) -> float | None:
        return self.tokens.mean.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        sizes = {name: site.size.value for name, site in sites.items() if isinstance(site, cls)}
        for finding in super().findings(sites):
            low = finding.value < finding.threshold
            own, usual = sizes[finding.site], others(finding.site, sizes, 0.75 if low else 0.5)
            if usual is None or own is None or (own < IDLER * usual if low else own > LARGER * usual):
                yield finding
