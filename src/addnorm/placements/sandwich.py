"""Sandwich-LN: a second norm on the branch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Placement, Settings, Site, State


class Sandwich(Placement):
    """h <- h + drop(M(f(N(h)))), M a second norm, on the branch, and one norm at the end.

    When to choose it: where pre-norm's branches grow out of half precision's range. What it costs: one more pass per
    sublayer than pre-norm: three reads, three writes.

    Source: Ding et al. 2021 (CogView, arXiv:2105.13290).
    """

    name = "sandwich"
    ends_in_norm = True
    d_model_after = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms, self.out_norms = self.new_norms(), self.new_norms()

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return self.norms[0](x), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        branch = self.out_norms[site.index](branch)
        return self.pass_on(branch, state, site, self.next_norm(self.norms, site))

    def algebra(self) -> tuple[str, ...]:
        return ("h <- h + drop(M(f(N(h))))",)
