"""Claim 9: where the values end up."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import SIGMAS, Claim, Evidence, Number, generator, near, values

ROWS, WIDTH, EPS = 256, 512, 1e-5
OUTSIDE = 1 - math.erf(1 / math.sqrt(2)) / 2  # P(not 0 <= N(0, 1) <= 1) = 1 - (Phi(1) - Phi(0))
MEANS, DEVIATIONS = (-4.0, -2.0, 0.0, 2.0, 4.0), (0.25, 0.5, 1.0, 2.0)
SHAPES: dict[str, Callable[[torch.Generator], Tensor]] = {
    "normal": lambda random: torch.randn(ROWS, WIDTH, generator=random),
    "uniform": lambda random: math.sqrt(12) * (torch.rand(ROWS, WIDTH, generator=random) - 0.5),
    "exponential": lambda random: -torch.log1p(-torch.rand(ROWS, WIDTH, generator=random)) - 1,
}
LOW, HIGH, BINS = -8.0, 8.0, 64


def run(seed: int) -> Evidence:
    x = 3 + 2 * torch.randn(ROWS, WIDTH, generator=generator(seed), dtype=torch.float64)
    y = add_norm(x, eps=EPS)
    variance = x.var(-1, correction=0)
    outside = ((y < 0) | (y > 1)).double().mean().item()
    one_hot = torch.zeros(WIDTH, dtype=torch.float64)
    one_hot[seed % WIDTH] = 1
    excess = (y.square().mean(-1) - variance / (variance + EPS)).abs().max().item()
    limit = math.sqrt(WIDTH - 1)
    numbers = (
        near("share of normal values outside [0, 1]", outside, OUTSIDE,
             SIGMAS * math.sqrt(OUTSIDE * (1 - OUTSIDE) / x.numel()), "1 - (Phi(1) - Phi(0)); binomial, 5 deviations"),
        near("largest value of a one-hot row, d = 512, eps = 0", add_norm(one_hot, eps=0.0).max().item(), limit,
             WIDTH * 2.0**-53 * limit, "sqrt(d - 1), the most that any row can reach; rounding"),
        Number("mean of a row, largest", y.mean(-1).abs().max().item(), 0.0, 0.0, WIDTH * 2.0**-53, "0; rounding"),
        Number("variance of a row - v / (v + eps), largest", excess, 0.0, 0.0, 4 * WIDTH * 2.0**-53, "0; rounding"),
    )  # fmt: skip
    return Evidence(numbers, plot(seed))


def plot(seed: int) -> Plot:
    """Histograms before and after: mean and deviation vanish, the distribution's shape stays."""
    before, after = [], []
    for draw in SHAPES.values():
        x = draw(generator(seed))
        for mean in MEANS:
            for deviation in DEVIATIONS:
                moved = mean + deviation * x
                before.append(density(moved))
                after.append(density(add_norm(moved, eps=EPS)))
    width = (HIGH - LOW) / BINS
    return Plot(
        "Values before and after LayerNorm",
        tuple(LOW + width * (i + 0.5) for i in range(BINS)),
        (
            Curve("before", tuple(before)),
            Curve("after", tuple(after)),
            Curve("the range claimed", (tuple(1.0 if 0 <= LOW + width * i < 1 else None for i in range(BINS)),)),
        ),
        "value",
        "density",
        (Control("distribution", tuple(SHAPES)), Control("mean μ", MEANS, 3), Control("deviation σ", DEVIATIONS, 1)),
    )


def density(x: Tensor) -> tuple[float, ...]:
    counts = torch.histc(x, BINS, LOW, HIGH)
    return values(counts / (x.numel() * (HIGH - LOW) / BINS))


CLAIM = Claim(
    9,
    "range",
    "A range from 0 to 1",
    "After normalisation the values lie between 0 and 1.",
    "wrong",
    "That is min-max scaling. LayerNorm gives each token mean 0 and variance v/(v + eps), just under 1: about a third "
    "of normal values land in [0, 1]. No bound but the width's holds: one hot feature among d reaches sqrt(d - 1).",
    "mean(xhat) = 0,  mean(xhat^2) = v / (v + eps),  |xhat| <= sqrt(d - 1)",
    "Ba et al. 2016, arXiv:1607.06450; the bound: |xhat|^2 <= d and sum(xhat) = 0",
    run,
)
