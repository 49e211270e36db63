"""B2T connection: post-norm with a skip from a layer's bottom to its top."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Placement, Settings, Site, State


class B2T(Placement):
    """Post-norm with one more skip, from the layer's bottom to its top, past all of its norms but the last::

        attention: h = N(h + drop(f(h)));   ffn: x <- N(x + h + drop(f(h))), x the layer's input

    When to choose it: a dozen and more layers of post-norm that should train without pre-norm's loss of quality. What
    it costs: as post-norm, and one more sum per layer.

    Source: Takase et al. 2022 (arXiv:2206.00330).
    """

    name = "b2t"
    ends_in_norm = False
    spans_layer = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, (x, x)

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        x, h = state
        if site.kind == "attention":
            h = self.add_norm(branch, h, self.norms[site.index], site)
            return h, (x, h)
        y = self.add_norm(branch, x + h, self.norms[site.index], site)
        return y, (y, y)

    def finish(self, state: State) -> Tensor:
        x, _ = state
        return x if self.final_norm is None else self.final_norm(x)

    def algebra(self) -> tuple[str, ...]:
        return ("attention: h = N(h + drop(f(h)))", "ffn: x <- N(x + h + drop(f(h))), x the layer's input")
