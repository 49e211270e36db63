"""Post-norm: the norm stands on the stream."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .base import Placement, Settings, Site, State


class Post(Placement):
    """x <- N(x + drop(f(x))): the norm stands on the stream itself.

    When to choose it: to match the 2017 transformer, BERT and their kin; in up to about six layers, where it ends a
    little better than pre-norm. Deeper it needs warm-up or does not train (Xiong et al. 2020, arXiv:2002.04745): each
    norm shrinks the identity path by (1 + |f|^2/|x|^2)^(-1/2). What it costs: one pass per sublayer, two reads and one
    write, the least of all.

    Source: Vaswani et al. 2017 (arXiv:1706.03762).
    """

    name = "post"
    ends_in_norm = False
    d_model_before = False
    d_model_after = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        y = self.add_norm(branch, state, self.norms[site.index], site)
        return y, y

    def finish(self, state: State) -> Tensor:
        return state if self.final_norm is None else self.final_norm(state)

    def algebra(self) -> tuple[str, ...]:
        return ("x <- N(x + drop(f(x)))",)
