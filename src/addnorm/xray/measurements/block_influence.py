"""How far a site turns the stream."""

from __future__ import annotations

from typing import Any

from ..base import Measurement, Rule
from ..streaming import PerToken
from ..tokens import Tokens


class BlockInfluence(Measurement):
    """Over one sublayer, where the paper takes a layer of two."""

    name = "block_influence"
    title = "block influence"
    formula = "1 - mean over tokens of cos(x_in, x_out), the stream before and after the site"
    source = "Men et al. 2024 (ShortGPT), arXiv:2403.03853"
    healthy = "above 0.01"
    rules = (
        Rule(
            0.01,
            above=False,
            heuristic=True,
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
