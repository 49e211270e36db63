"""Do the tokens of a sequence become one?"""

from __future__ import annotations

from typing import Any

import torch

from ..base import Measurement, Rule, Urgency
from ..streaming import Mean, PerToken
from ..tokens import Tokens


class RankCollapse(Measurement):
    """X are the real tokens of one sequence after the site, a row each; sequences of one token are left out.

    A token has |x - mean(X)| / |x|.
    """

    name = "rank_collapse"
    title = "rank residual"
    formula = "mean over sequences of |X - 1 mean(X)'| / |X|, Frobenius norms"
    source = "Dong et al. 2021, arXiv:2103.03404: attention without skips and FFNs collapses doubly exponentially"
    healthy = "above 0.1"
    rules = (
        Rule(
            0.1,
            above=False,
            heuristic=True,
            urgency=Urgency.UNSTABLE,
            meaning="The tokens of a sequence are nearly the same vector.",
            action="Look for attention that is uniform and for a skip that is lost; strengthen the skip or the FFN.",
        ),
    )
    carried = True

    def __init__(self) -> None:
        self.mean, self.tokens = Mean(), PerToken(smallest=True)

    def update(self, tokens: Tokens) -> None:
        rows, (_, which) = tokens.carried, torch.unique(tokens.where.sequence, return_inverse=True)
        if not len(rows):
            return
        count = torch.bincount(which)
        centre = rows.new_zeros(len(count), rows.shape[1]).index_add(0, which, rows) / count[:, None]
        squares, apart_squares = rows.square().sum(-1), (rows - centre[which]).square().sum(-1)
        whole, apart = (rows.new_zeros(len(count)).index_add(0, which, each) for each in (squares, apart_squares))
        self.mean.add((apart / whole).sqrt()[(count > 1) & (whole > 0)])
        several = (count > 1)[which]
        self.tokens.add((apart_squares / squares).sqrt()[several], tokens.where[several])

    @property
    def value(self) -> float | None:
        return self.mean.value

    def details(self) -> dict[str, Any]:
        return self.tokens.details()
