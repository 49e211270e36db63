"""How large the branch is beside the stream that it is added to."""

from __future__ import annotations

from typing import Any

import torch

from ..base import Measurement, Rule
from ..streaming import PerToken
from ..tokens import Tokens


class ResidualRatio(Measurement):
    """A row whose stream is 0 has an infinite ratio, and 0 where its branch is 0 too."""

    name = "residual_ratio"
    title = "residual ratio"
    formula = "mean over tokens of |f| / |x|, f the branch, x the stream that it is added to"
    source = "the rho of Admin's analysis (Liu et al. 2020, arXiv:2004.08249), per token"
    healthy = "between 0.02 and 3"
    rules = (
        Rule(
            0.02,
            above=False,
            heuristic=True,
            meaning="The branch adds almost nothing: an idle sublayer.",
            action="See whether it starts at 0 (ReZero, LayerScale) and gets gradients; else it can be pruned.",
        ),
        Rule(
            3.0,
            above=True,
            heuristic=True,
            meaning="The branch overwrites the stream, so that the skip carries little.",
            action="Lower the learning rate or its last initialisation, or scale it (LayerScale, DeepNorm).",
        ),
    )

    def __init__(self) -> None:
        self.tokens = PerToken()

    def update(self, tokens: Tokens) -> None:
        ratio = torch.where(tokens.x_norm == 0, 0.0, tokens.x_norm / tokens.residual_norm)
        self.tokens.add(ratio, tokens.where)

    @property
    def value(self) -> float | None:
        return self.tokens.mean.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()
