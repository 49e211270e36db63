"""LayerScale: pre-norm with scaled branches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..checks import check_number
from .base import Placement, Settings, Site, State


class LayerScale(Placement):
    """h <- h + l * drop(f(N(h))), l a learned scale per feature that starts small, and one norm at the end.

    When to choose it: deep vision transformers and others that should start near the identity. What it costs: as
    pre-norm; the scale rides in the same pass.

    Args:
        initial: Where l starts; None: the paper's 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 deeper.

    Source: Touvron et al. 2021 (CaiT, arXiv:2103.17239).
    """

    name = "layerscale"
    ends_in_norm = True
    d_model_after = True

    def __init__(
        self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None, *, initial: float | None = None
    ) -> None:
        super().__init__(sites, settings, final_norm)
        layers = self.sites[0].layers
        if initial is None and layers is None:
            raise ValueError("placement='layerscale' chooses its initial scale by depth: pass depth= or initial=")
        if initial is not None:
            check_number("initial", initial)
        self.initial = initial_scale(layers or 0) if initial is None else initial
        self.norms = self.new_norms()
        self.scales = self.new_scales(settings.d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set each scale to its initial value."""
        for scale in self.scales:
            nn.init.constant_(scale, self.initial)

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return self.norms[0](x), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        following = self.next_norm(self.norms, site)
        return self.pass_on(branch, state, site, following, branch_scale=self.scales[site.index])

    def algebra(self) -> tuple[str, ...]:
        return (f"h <- h + l * drop(f(N(h))), l learned per feature, {self.initial:g} at first",)


def initial_scale(layers: int) -> float:
    """
    >>> initial_scale(12), initial_scale(24), initial_scale(36)
    (0.1, 1e-05, 1e-06)
    """
    return 0.1 if layers <= 18 else 1e-5 if layers <= 24 else 1e-6
