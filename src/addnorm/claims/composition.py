"""Claim 1: what the name says."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from ..rng import mask
from .base import SIGMAS, Claim, Evidence, Number, generator, near, values

ROWS, WIDTH, EPS, P = 256, 64, 1e-5, 0.1
ROUNDING = 2.0**-24  # of float32
RATES, SEEDS, SHOWN = (0.0, 0.1, 0.3, 0.5), (1, 2, 3, 4), 16
DROPPED = "an element is dropped iff its 16-bit random number is below 65536 p; binomial, 5 standard deviations"
UNFUSED = "the same arithmetic; about 8 roundings of relative size u = 2^-24 in float32"
LAST = "mean of squares of a normalised row: v / (v + eps); off by eps / v, with v > 1/2"
FIRST = "1 from the skip and 1 from the normalised branch, independent; sampling, 5 standard deviations"


def run(seed: int) -> Evidence:
    random = generator(seed)
    x, residual = torch.randn(2, ROWS, WIDTH, generator=random)
    weight, bias = torch.randn(2, WIDTH, generator=random)
    threshold = round(65536 * P)
    kept = mask(seed, ROWS, WIDTH, threshold)
    branch_first = residual + add_norm(x, eps=EPS)
    numbers = (
        error("fused against unfused, float32", add_norm(x, residual, weight, bias, eps=EPS),
              unfused(x, residual, weight, bias)),
        error("the same with dropout", add_norm(x, residual, weight, bias, eps=EPS, dropout_p=P, seed=seed),
              unfused(x * kept / (1 - P), residual, weight, bias)),
        near("share dropped, p = 0.1", 1 - kept.double().mean().item(), threshold / 65536,
             SIGMAS * math.sqrt(P * (1 - P) / kept.numel()), DROPPED),
        near("mean square of LN(x + f)", add_norm(x, residual, eps=EPS).square().mean().item(), 1.0, 2 * EPS, LAST),
        near("mean square of x + LN(f)", branch_first.square().mean().item(), 2.0,
             SIGMAS * math.sqrt(6 / x.numel()), FIRST),
    )  # fmt: skip
    return Evidence(numbers, plot())


def unfused(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Residual connection, then layer normalisation, one after the other in float64."""
    z = residual.double() + x.double()
    return F.layer_norm(z, (WIDTH,), weight.double(), bias.double(), EPS)


def error(name: str, y: Tensor, exact: Tensor) -> Number:
    units = (y - exact).abs().max() / (ROUNDING * exact.abs().max())
    return Number(f"{name}: error in units of u max|y|", units.item(), 0.0, 0.0, 8.0, UNFUSED)


def plot() -> Plot:
    """A row on its way through, for several dropout rates and seeds."""
    dropped, normed, skips = [], [], []
    for p in RATES:
        for seed in SEEDS:
            x, residual = torch.randn(2, SHOWN, generator=generator(seed))
            kept = mask(seed, 1, SHOWN, round(65536 * p))[0]
            skips.append(values(residual))
            dropped.append(values(x * kept / (1 - p)))
            normed.append(values(add_norm(x, residual, dropout_p=p, seed=seed)))
    return Plot(
        "A token's way through Add & Norm",
        tuple(range(1, SHOWN + 1)),
        (
            Curve("x, the skip", tuple(skips), "bars"),
            Curve("Drop(f), the branch", tuple(dropped), "bars"),
            Curve("LN(x + Drop(f))", tuple(normed), "points"),
        ),
        "feature",
        "value",
        (Control("dropout p", RATES, 1), Control("seed", SEEDS)),
    )


CLAIM = Claim(
    1,
    "composition",
    "Residual connection, then layer normalisation",
    "Add & Norm is a residual connection followed by layer normalisation.",
    "right",
    "Right for the transformer of 2017, which also drops out: dropout acts on the branch before it is added. The "
    "order matters: the norm of the sum has mean square 1, a sum with a normalised branch does not. Later models "
    "mostly put the norm elsewhere (pre-norm).",
    "y = LN(x + Drop(f(x)))        LN(z) = gamma (z - mean z) / sqrt(var z + eps) + beta",
    "Vaswani et al. 2017, arXiv:1706.03762, sections 3.1 and 5.4; Ba et al. 2016, arXiv:1607.06450",
    run,
)
