"""Mix-LN: post-norm below, pre-norm above."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..checks import check_number
from ..words import count
from .base import Placement, Settings, Site, State


class MixLN(Placement):
    """Post-norm in the first floor(a N) layers, pre-norm in the others, and one norm at the end.

    When to choose it: deep language models in which both the first layers (weak under post-norm) and the last ones
    (weak under pre-norm) should learn. What it costs: as post-norm, then as pre-norm.

    Args:
        post_fraction: a, 0.25 in the paper.

    Source: Li et al. 2024 (arXiv:2412.13795).
    """

    name = "mix_ln"
    ends_in_norm = True
    needs_depth = True

    def __init__(
        self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None, *, post_fraction: float = 0.25
    ) -> None:
        super().__init__(sites, settings, final_norm)
        check_number("post_fraction", post_fraction)
        if not 0 <= post_fraction <= 1:
            raise ValueError(f"post_fraction must be in [0, 1], got {post_fraction}")
        layers = self.sites[0].layers
        assert layers is not None
        self.post_layers = math.floor(post_fraction * layers)
        self.norms = self.new_norms()
        if self.is_post(self.sites[0]):
            self.d_model_before, self.d_model_after = False, True

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return self.before(self.sites[0], x), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        if not self.is_post(site):
            return self.pass_on(branch, state, site, self.next_norm(self.norms, site))
        y = self.add_norm(branch, state, self.norms[site.index], site)
        if site.last:
            return y, y if self.final_norm is None else self.final_norm(y)
        return self.before(self.sites[site.index + 1], y), y

    def algebra(self) -> tuple[str, ...]:
        return (f"first {count(self.post_layers, 'layer')}: x <- N(x + drop(f(x)))", "then: h <- h + drop(f(N(h)))")

    def is_post(self, site: Site) -> bool:
        return site.layer < self.post_layers

    def before(self, site: Site, x: Tensor) -> Tensor:
        """What the sublayer at `site` takes in where x is the stream."""
        return x if self.is_post(site) else self.norms[site.index](x)
