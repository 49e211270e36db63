"""How far a site turns the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base import Finding, Measurement, Rule, Urgency, others
from ..streaming import PerToken
from ..tokens import Tokens

IDLE = 2e-4  # what a branch of 1/50 turns, the residual ratio's limit: 0.02^2 / 2
IDLER = 0.01  # how far from the other sites: its root is the residual ratio's


class BlockInfluence(Measurement):
    """Over one sublayer, where the paper takes a layer of two. A branch of ratio rho at a right angle to the stream
    turns it by rho^2 / 2. A deep pre-norm stack has 1e-3 at its late sites from the start, so that 0.01, at which the
    paper's models can be pruned, is no sign of a fault."""

    name = "block_influence"
    title = "block influence"
    formula = "1 - mean over tokens of cos(x_in, x_out), the stream before and after the site"
    source = "Men et al. 2024 (ShortGPT), arXiv:2403.03853"
    healthy = "above 2e-4; warned of where it is under a hundredth of the other sites' upper quartile"
    rules = (
        Rule(
            IDLE,
            above=False,
            heuristic=True,
            urgency=Urgency.UNBALANCED,
            meaning="The stream leaves the site as it came: a nearly idle sublayer.",
            action="A candidate for pruning; in training, see whether its branch gets gradients.",
        ),
    )

    def __init__(self) -> None:
        self.tokens = PerToken(smallest=True)

    def update(self, tokens: Tokens) -> None:
        out = tokens.carried
        cosine = (tokens.residual * out).sum(-1) / (tokens.residual_norm * out.norm(dim=-1))
        self.tokens.add((1 - cosine).clamp(min=0), tokens.where)  # rounding may leave -1e-16

    @property
    def value(self) -> float | None:
        return self.tokens.mean.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        values = {name: site.value for name, site in sites.items()}
        for finding in super().findings(sites):
            usual = others(finding.site, values, 0.75)
            if usual is None or finding.value < IDLER * usual:
                yield finding
