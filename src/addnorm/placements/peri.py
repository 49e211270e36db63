"""Peri-LN: norms before and behind every sublayer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Placement, Settings, Site, State


class Peri(Placement):
    """h <- N(x) at the start; h <- h + drop(M(f(N(h)))); one norm at the end.

    When to choose it: large language models that pre-norm lets grow massive activations (Gemma 2 and 3 and OLMo 2 do
    much the same): the stream grows linearly and no faster. What it costs: as sandwich, and one norm more at the start.

    Source: Kim et al. 2025 (arXiv:2502.02732).
    """

    name = "peri"
    ends_in_norm = True
    d_model_after = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.first_norm = None if self.sites[0].layer else self.new_norm()  # a later `Residual` goes on
        self.norms, self.out_norms = self.new_norms(), self.new_norms()

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        h = x if self.first_norm is None else self.first_norm(x)
        return self.norms[0](h), h

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        branch = self.out_norms[site.index](branch)
        return self.pass_on(branch, state, site, self.next_norm(self.norms, site))

    def algebra(self) -> tuple[str, ...]:
        return ("start: h = N(x)", "h <- h + drop(M(f(N(h))))")
