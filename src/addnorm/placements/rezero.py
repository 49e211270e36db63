"""ReZero: no norm, a scaled branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.scales = nn.ParameterList(
            nn.Parameter(torch.zeros((), device=settings.device, dtype=settings.dtype)) for _ in self.sites
        )

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        x = self.add(branch, state, site, self.scales[site.index])
        return x, x

    def finish(self, state: State) -> Tensor:
        return state if self.final_norm is None else self.final_norm(state)

    def initialise(self, sublayers: Sequence[nn.Module], run: Callable[[], object] | None) -> dict[str, float]:
        return {}

    def algebra(self) -> tuple[str, ...]:
        return ("x <- x + a drop(f(x)), a learned, 0 at first",)
