"""How much of the sum's variance comes from the branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..base import Finding, Measurement, Rule, Urgency
from ..streaming import Mean, PerToken
from ..tokens import Tokens


class BranchDependency(Measurement):
    """Variances are over the features of a token, biased, summed over the tokens.

    The paper's argument is post-norm's: there the norm takes out of the skip what the branch adds. With pre-norm the
    first branches of every model are most of a stream that is still short, and nothing is warned of; nor of a sum of
    embeddings, which is no sublayer's. The limit is what an independent branch of 3 times the stream has, the residual
    ratio's limit.
    """

    name = "branch_dependency"
    title = "branch dependency"
    formula = "sum over tokens of Var(f) / sum over tokens of Var(x + f)"
    source = "Liu et al. 2020 (Admin), arXiv:2004.08249: heavy dependency amplifies perturbations of the weights"
    healthy = "with post-norm at most 0.9; 0.5 with a branch of the stream's size"
    rules = (
        Rule(
            0.9,
            above=True,
            heuristic=True,
            urgency=Urgency.NOTE,
            meaning="The sum depends on the branch more than on the skip: small changes of its weights are amplified.",
            action="In training that is unstable: warm up longer, or initialise as Admin or DeepNorm do. In a trained "
            "post-norm model it is common.",
        ),
    )

    def __init__(self) -> None:
        self.branch, self.sum, self.tokens = Mean(), Mean(), PerToken()
        self.post_norm = False

    def update(self, tokens: Tokens) -> None:
        branch, total = variance(tokens.x), variance(tokens.z)
        self.post_norm = tokens.kind.carry == "y" and tokens.kind.sublayer
        self.branch.add(branch)
        self.sum.add(total)
        self.tokens.add(branch / total, tokens.where)

    @property
    def value(self) -> float | None:
        return self.branch.total / self.sum.total if self.sum.total else None

    def details(self) -> dict[str, Any]:
        return self.tokens.details()

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        post = {name for name, site in sites.items() if isinstance(site, cls) and site.post_norm}
        yield from (finding for finding in super().findings(sites) if finding.site in post)


def variance(rows: Tensor) -> Tensor:
    """Of each row. (`Tensor.var` warns where there are no rows.)"""
    return (rows - rows.mean(-1, keepdim=True)).square().mean(-1)
