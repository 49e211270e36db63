"""ReZero: no norm, a scaled branch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .base import Placement, Settings, Site, State


class ReZero(Placement):
    """x <- x + a drop(f(x)), a a learned number per sublayer that starts at 0: the identity at first, with no norm.

    When to choose it: very deep plain stacks that should start quickly. Without a norm nothing holds the stream's size.
    What it costs: a sum per sublayer. (SkipInit, De & Smith 2020, arXiv:2002.10444, is the same rule.)

    Source: Bachlechner et al. 2020 (arXiv:2003.04887).
    """

    name = "rezero"
    ends_in_norm = False
    d_model_before = False

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.scales = self.new_scales(1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set each scale to 0."""
        for scale in self.scales:
            nn.init.zeros_(scale)

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        scale = self.scales[site.index].reshape(())  # which leaves the branch its type
        x = self.add(branch, state, site, scale)
        return x, x

    def finish(self, state: State) -> Tensor:
        return state if self.final_norm is None else self.final_norm(state)

    def algebra(self) -> tuple[str, ...]:
        return ("x <- x + a drop(f(x)), a learned, 0 at first",)
