"""ResiDual: a normed and a plain stream."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Placement, Settings, Site, State


class ResidualDual(Placement):
    """Two streams, one normed and one not, both starting at the input::

        x <- N(x + drop(f(x)));   h <- h + drop(f(x));   at the end x + N(h)

    When to choose it: post-norm's diversity of layers with pre-norm's gradients. What it costs: a second sum per
    sublayer, four reads and two writes, and a second stream in memory.

    Source: Xie et al. 2023 (arXiv:2304.14802).
    """

    name = "residual_dual"
    ends_in_norm = True
    end = ()  # the algebra has it

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        if self.final_norm is None:
            raise ValueError("placement='residual_dual' is x + N(h) at the end: final_norm must be True")
        self.norms = self.new_norms()

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, (x, x)

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        x, h = state
        dropped = self.dropped(branch, site)  # one mask for both sums
        y = self.norm_sum(dropped, x, self.norms[site.index])
        return y, (y, h + dropped)

    def finish(self, state: State) -> Tensor:
        x, h = state
        assert self.final_norm is not None
        return x + self.final_norm(h)

    def algebra(self) -> tuple[str, ...]:
        return ("x <- N(x + drop(f(x)));  h <- h + the same drop(f(x))", "end: x + N(h)")
