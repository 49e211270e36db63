"""Parallel sublayers: one norm for all sublayers of a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import Placement, Settings, Site, State


class Parallel(Placement):
    """h <- h + drop(f_1(N(h))) + drop(f_2(N(h))) + ...: the sublayers of a layer share one norm and do not see each
    other, and one norm at the end.

    When to choose it: large models, where it trains as pre-norm does and the sublayers' first matrices can be one. What
    it costs: one norm per layer; for every sublayer a sum, for the last of the layer fused with the next layer's norm.

    Source: Wang & Komatsuzaki 2021 (GPT-J); Chowdhery et al. 2022 (PaLM, arXiv:2204.02311).
    """

    name = "parallel"
    ends_in_norm = True
    spans_layer = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = nn.ModuleList(self.new_norm() for site in self.sites if site.kind == "ffn")  # one for each layer

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        y = self.norms[0](x)
        return y, (y, x)

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        y, h = state
        if site.kind == "attention":
            return y, (y, self.add(branch, h, site))
        following = self.final_norm if site.last else self.norms[site.layer + 1]
        y, h = self.pass_on(branch, h, site, following)
        return y, (y, h)

    def finish(self, state: State) -> Tensor:
        y, _ = state
        return y

    def algebra(self) -> tuple[str, ...]:
        return ("h <- h + drop(f_1(N(h))) + drop(f_2(N(h))) + ..., over the sublayers of a layer",)
