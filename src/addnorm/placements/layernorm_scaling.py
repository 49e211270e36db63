"""LayerNorm Scaling: pre-norm, weaker with depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Placement, Settings, Site, State


class LayerNormScaling(Placement):
    """h <- h + drop(f(N(h) / sqrt(l))) in layer l = 1, 2, ..., and one norm at the end.

    When to choose it: deep pre-norm models, whose last layers otherwise do next to nothing: at initialisation the
    stream's variance then grows with the logarithm of the depth, not with the depth. What it costs: as pre-norm.

    Source: Sun et al. 2025 (The Curse of Depth, arXiv:2502.05795).
    """

    name = "layernorm_scaling"
    ends_in_norm = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        first = self.norms[0]
        return first(x) * scale(self.sites[0]), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        gain = 1.0 if site.last else scale(self.sites[site.index + 1])
        return self.pass_on(branch, state, site, self.next_norm(self.norms, site), gain=gain)

    def algebra(self) -> tuple[str, ...]:
        return ("h <- h + drop(f(N(h) / sqrt(l))), l the layer, from 1",)


def scale(site: Site) -> float:
    return (site.layer + 1) ** -0.5
