"""How much of the sum's variance comes from the branch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import Measurement, Rule
from ..streaming import Mean, PerToken
from ..tokens import Tokens


class BranchDependency(Measurement):
    """Variances are over the features of a token, biased, summed over the tokens."""

    name = "branch_dependency"
    title = "branch dependency"
    formula = "sum over tokens of Var(f) / sum over tokens of Var(x + f)"
    source = "Liu et al. 2020 (Admin), arXiv:2004.08249: heavy dependency amplifies perturbations of the weights"
    healthy = "at most 0.5"
    rules = (
        Rule(
            0.5,
            above=True,
            heuristic=True,
            meaning="The sum depends on the branch more than on the skip: small changes of its weights are amplified.",
            action="In training that is unstable: warm up longer, or initialise as Admin or DeepNorm do. In a trained "
            "post-norm model it is common.",
        ),
    )

    def __init__(self) -> None:
        self.branch, self.sum, self.tokens = Mean(), Mean(), PerToken()

    def update(self, tokens: Tokens) -> None:
        branch, total = variance(tokens.x), variance(tokens.z)
        self.branch.add(branch)
        self.sum.add(total)
        self.tokens.add(branch / total, tokens.where)

    @property
    def value(self) -> float | None:
        return self.branch.total / self.sum.total if self.sum.total else None

    def details(self) -> dict[str, Any]:
        return self.tokens.details()


def variance(rows: Tensor) -> Tensor:
    """Of each row. (`Tensor.var` warns where there are no rows.)"""
    return (rows - rows.mean(-1, keepdim=True)).square().mean(-1)
