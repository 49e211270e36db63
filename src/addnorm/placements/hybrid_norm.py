"""HybridNorm: normed queries, keys and values, post-norm around the feed-forward network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from .base import Placement, Settings, Site, State


class HybridNorm(Placement):
    """Attention with normed queries, keys and values in place of a norm before it, post-norm around the feed-forward::

        attention: n = N(h + drop(f(h)));   ffn: h <- n + drop(f(n))

    and one norm at the end.

    When to choose it: language models that should have pre-norm's stability with some of post-norm's gain. What it
    costs: one pass and one sum per layer, and the norms inside the attention. Attention sublayers offer ``q_norm``,
    ``k_norm`` and ``v_norm``, each an ``addnorm.Slot(width)``.

    Source: Zhuo et al. 2025 (arXiv:2503.04598).
    """

    name = "hybrid_norm"
    ends_in_norm = True
    spans_layer = True
    slots: ClassVar = {"attention": ("q_norm", "k_norm", "v_norm")}

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = nn.ModuleDict({str(s.index): self.new_norm() for s in self.sites if s.kind == "attention"})

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        if site.kind == "attention":
            n = self.add_norm(branch, state, self.norms[str(site.index)], site)
            return n, n
        return self.pass_on(branch, state, site, self.final_norm if site.last else None)

    def algebra(self) -> tuple[str, ...]:
        return ("attention: n = N(h + drop(f(h))), f with normed q, k and v", "ffn: h <- n + drop(f(n))")
