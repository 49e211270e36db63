"""NormFormer: pre-norm with a norm behind the attention and one inside the feed-forward network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from .base import Placement, Settings, Site, State


class NormFormer(Placement):
    """Attention: h <- h + drop(M(f(N(h)))). Feed-forward: h <- h + drop(W_2 M(g(N(h)))), with the norm inside. One norm
    at the end. The paper's learned scale per attention head is the attention's own affair.

    When to choose it: language models that should reach pre-norm's loss in fewer steps. What it costs: one norm more
    than pre-norm per sublayer. Feed-forward sublayers offer ``inner_norm = addnorm.Slot(width)``.

    Source: Shleifer et al. 2021 (arXiv:2110.09456).
    """

    name = "normformer"
    ends_in_norm = True
    spans_layer = True
    slots: ClassVar = {"ffn": ("inner_norm",)}

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()
        self.out_norms = nn.ModuleDict({str(s.index): self.new_norm() for s in self.sites if s.kind == "attention"})

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return self.norms[0](x), x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        if site.kind == "attention":
            branch = self.out_norms[str(site.index)](branch)
        return self.pass_on(branch, state, site, self.next_norm(self.norms, site))

    def algebra(self) -> tuple[str, ...]:
        return ("attention: h <- h + drop(M(f(N(h))))", "ffn: h <- h + drop(f(N(h))), f with a norm before W_2")
