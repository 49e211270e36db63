"""Claim 8: over what is normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, generator, near, values

ROWS, WIDTH, EPS = 32, 64, 1e-5
SHIFTS, SEEDS, SHOWN = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0), (1, 2, 3), 16
ROUNDING = 64 * 2.0**-53  # of a mean over 64 values, float64


def run(seed: int) -> Evidence:
    x = torch.randn(ROWS, WIDTH, generator=generator(seed), dtype=torch.float64)
    moved = shifted(x, 3.0)
    y = add_norm(x, eps=EPS)
    variance = x.var(-1, correction=0)
    excess = (y.var(-1, correction=0) - variance / (variance + EPS)).abs().max().item()
    bn_mean = (moved.mean(0) - x.mean(0)).mean().item()
    numbers = (
        Number("change of token 0 under LN when all others move by 3", change(add_norm(x, eps=EPS),
               add_norm(moved, eps=EPS)), 0.0, 0.0, 0.0, "its statistics are its own: equal bit for bit"),
        near("change of BatchNorm's mean", bn_mean, 3 * (ROWS - 1) / ROWS, ROUNDING * 3,
             "3 (n - 1)/n with n = 32 tokens; rounding"),
        Number("mean of each token after LN, largest", y.mean(-1).abs().max().item(), 0.0, 0.0, ROUNDING,
               "the mean was taken away; rounding"),
        Number("variance of each token after LN - v / (v + eps), largest", excess, 0.0, 0.0, 4 * ROUNDING,
               "eps stands inside the root; rounding"),
        Number("mean of each feature after LN, largest", y.mean(0).abs().max().item(), None, ROWS**-0.5, math.inf,
               "nothing fixes it, BatchNorm does: at least 1/sqrt(n), a mean's deviation, but for once in 10^10"),
    )  # fmt: skip
    return Evidence(numbers, plot())


def shifted(x: Tensor, by: float) -> Tensor:
    """All tokens but the first, moved."""
    return torch.cat((x[:1], x[1:] + by))


def change(before: Tensor, after: Tensor) -> float:
    return (before[0] - after[0]).abs().max().item()


def batch_norm(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, correction=0) + EPS).sqrt()


def plot() -> Plot:
    layer, batch = [], []
    for shift in SHIFTS:
        for seed in SEEDS:
            x = shifted(torch.randn(ROWS, SHOWN, generator=generator(seed)), shift)
            layer.append(values(add_norm(x, eps=EPS)[0]))
            batch.append(values(batch_norm(x)[0]))
    return Plot(
        "Token 0 after the norm, while the other tokens move",
        tuple(range(1, SHOWN + 1)),
        (Curve("LayerNorm", tuple(layer), "bars"), Curve("BatchNorm", tuple(batch), "bars")),
        "feature",
        "value of token 0",
        (Control("the others move by", SHIFTS), Control("seed", SEEDS)),
    )


CLAIM = Claim(
    8,
    "per-token",
    "Across the features of each token",
    "Layer normalisation normalises across the features of each item, not across the batch.",
    "right",
    "Right: mean and variance are those of one token. The other tokens, the batch and the padding do not enter, not "
    "even in the last bit. A feature's mean over the batch is what LN leaves free and BatchNorm fixes.",
    "mu_t = mean_i x_ti,  v_t = mean_i (x_ti - mu_t)^2        BatchNorm: mu_i = mean_t x_ti",
    "Ba et al. 2016, arXiv:1607.06450, section 3; Ioffe & Szegedy 2015, arXiv:1502.03167",
    run,
)
