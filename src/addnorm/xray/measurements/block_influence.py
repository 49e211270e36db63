"""How far a site turns the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..base import Finding, Measurement, Rule, Urgency, others
from ..streaming import Mean, PerToken
from ..tokens import Tokens

IDLE = 2e-4  # what a branch of 1/50 turns, the residual ratio's limit: 0.02^2 / 2
IDLER = 0.1  # how far its branch is from the other sites', as for the residual ratio


class BlockInfluence(Measurement):
    """Over one sublayer, where the paper takes a layer of two. A branch of ratio rho at a right angle to the stream
    turns it by rho^2 / 2. A deep pre-norm stack has 1e-3 at its late sites from the start, so that 0.01, at which the
    paper's models can be pruned, is no sign of a fault."""

    name = "block_influence"
    title = "block influence"
    formula = "1 - mean over tokens of cos(x_in, x_out), the stream before and after the site"
    source = "Men et al. 2024 (ShortGPT), arXiv:2403.03853"
    healthy = "above 2e-4; warned of where |f| is under a tenth of the other sites' upper quartile"
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
        self.tokens, self.size = PerToken(smallest=True), Mean()

    def update(self, tokens: Tokens) -> None:
        out = tokens.carried
        cosine = (tokens.residual * out).sum(-1) / (tokens.residual_norm * out.norm(dim=-1))
        self.tokens.add((1 - cosine).clamp(min=0), tokens.where)  # rounding may leave -1e-16
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
            own, usual = sizes[finding.site], others(finding.site, sizes, 0.75)
            if usual is None or own is None or own < IDLER * usual:
                yield finding
