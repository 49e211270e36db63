"""Pre-norm: the norm stands before the sublayer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .base import Placement, Settings, Site, State
from .weights import redraw


class Pre(Placement):
    """h <- h + drop(f(N(h))), and one norm at the end: the stream itself is never normed, so that its identity path is
    exactly 1.

    When to choose it: by default, at any depth; it trains without warm-up. The stream's variance grows with depth, at
    init linearly, so that deep layers change it less and less. What it costs: one pass per sublayer, which adds its
    branch and norms for the next one: two reads, two writes.

    `initialise` shrinks what writes to the stream, output projections and last matrices, by 1/sqrt(number of
    sublayers) (GPT-2, Radford et al. 2019), drawn from Glorot's normal distribution.

    Source: Baevski & Auli 2019 (arXiv:1809.10853); Xiong et al. 2020 (arXiv:2002.04745).
    """

    name = "pre"
    ends_in_norm = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()
        layers, first = self.sites[0].layers, self.sites[0].layer
        per_layer = sum(site.layer == first for site in self.sites)
        self.gain = None if layers is None else (layers * per_layer) ** -0.5

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return self.norms[0](x), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        return self.pass_on(branch, state, site, self.next_norm(self.norms, site))

    def initialise(self, sublayers: Sequence[nn.Module], run: Callable[[], object] | None) -> dict[str, float]:
        if self.gain is None:
            raise ValueError("initialise(): pre scales by the number of sublayers: pass depth=")
        return redraw(sublayers, {"qk": 1.0, "in": 1.0, "out": self.gain}, "pre")

    def algebra(self) -> tuple[str, ...]:
        rule = () if self.gain is None else (f"initialise(): gain {self.gain:.6g} on o, fc2",)
        return ("h <- h + drop(f(N(h)))", *rule)
