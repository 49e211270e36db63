"""Admin: post-norm with profiled skips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .base import Placement, Settings, Site, State


class Admin(Placement):
    """x <- N(w_i * x + drop(f_i(x))), w_i a learned scale per feature of the skip. It starts at 1, which is post-norm;
    `initialise` with a sample profiles one run with all w at 1 and sets w_i = sqrt(1 + Var f_1 + ... + Var f_(i-1)):
    branches count for less the deeper they stand, while the model is young. The paper's sum over j < i begins with the
    input, its f_0. What w_i multiplies comes from a norm and has variance 1, and so the input counts with 1; without it
    w_1 would be 0 and the first sublayer would have no skip.

    When to choose it: deep post-norm models, as DeepNorm, with scales measured on the data at hand. What it costs: one
    scale per sublayer; the branch is dropped out in a pass of its own.

    Source: Liu et al. 2020 (arXiv:2004.08249).
    """

    name = "admin"
    ends_in_norm = False
    d_model_before = False
    d_model_after = True

    def __init__(self, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None) -> None:
        super().__init__(sites, settings, final_norm)
        self.norms = self.new_norms()
        self.scales = self.new_scales(settings.d_model)
        self.variances: list[float] | None = None  # of the branches, while `initialise` profiles
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set each scale to 1, as before `initialise`."""
        for scale in self.scales:
            nn.init.ones_(scale)

    def start(self, x: Tensor) -> tuple[Tensor, State]:
        return x, x

    def combine(self, branch: Tensor, state: State, site: Site) -> tuple[Tensor, State]:
        if self.variances is not None:
            self.variances.append(variance(branch, site))
        dropped = self.dropped(branch, site)
        scale = self.scales[site.index] if self.variances is None else None  # 1 while `initialise` profiles
        y = self.norm_sum(state, dropped, self.norms[site.index], branch_scale=scale)
        return y, y

    def finish(self, state: State) -> Tensor:
        return state if self.final_norm is None else self.final_norm(state)

    @torch.no_grad()
    def initialise(self, sublayers: Sequence[nn.Module], run: Callable[[], object] | None) -> dict[str, float]:
        if run is None:
            raise ValueError("placement='admin' profiles its branches: initialise(x) needs a sample of the input")
        self.variances = []
        try:
            run()
            behind = itertools.accumulate(self.variances, initial=1.0)
        finally:
            self.variances = None
        found = {}
        for index, (scale, total) in enumerate(zip(self.scales, behind, strict=False)):
            nn.init.constant_(scale, total**0.5)
            found[f"placement.scales.{index}"] = total**0.5
        return found

    def algebra(self) -> tuple[str, ...]:
        return ("x <- N(w_i * x + drop(f(x))), w_i learned per feature; initialise(x) profiles it",)


def variance(branch: Tensor, site: Site) -> float:
    found = branch.double().var(correction=0).item() if branch.numel() else math.nan
    if not math.isfinite(found):
        raise ValueError(
            f"initialise(x): the branch of sublayer {site.index}, of shape {tuple(branch.shape)}, has no finite "
            "variance: x must not be empty, and all branches must be finite"
        )
    return found
