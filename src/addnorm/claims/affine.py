"""Claim 12: what gamma and beta are for."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, generator, values

ROWS, WIDTH, OUT, EPS = 64, 256, 64, 1e-5
MEANS, DEVIATIONS, GAMMAS, BETAS = (-4.0, 0.0, 2.0, 4.0), (0.5, 1.0, 2.0), (-1.0, 0.0, 0.5, 1.0, 2.0), (-2.0, 0.0, 2.0)
SHOWN = 16
FOLDED = "the same map; float32, sums of 256 products: sqrt(256) u max|W y| at 5 deviations"
LINE = "y = gamma xhat + beta, the same line for every input; float64 rounding"


def run(seed: int) -> Evidence:
    random = generator(seed)
    x, residual = torch.randn(2, ROWS, WIDTH, generator=random)
    gamma, beta = torch.randn(2, WIDTH, generator=random)
    w = torch.randn(OUT, WIDTH, generator=random) / math.sqrt(WIDTH)
    b = torch.randn(OUT, generator=random)
    before = F.linear(add_norm(x, residual, gamma, beta, eps=EPS), w, b)
    after = F.linear(add_norm(x, residual, eps=EPS), *fold(w, b, gamma, beta))
    relative = ((before - after).abs().max() / before.abs().max()).item()
    numbers = (
        Number("outputs of the next Linear, before and after folding, relative", relative, 0.0, 0.0,
               5 * math.sqrt(WIDTH) * 2.0**-24, FOLDED),
        Number("y - (gamma xhat + beta), two unlike inputs, largest", off_line(x, residual, gamma, beta), 0.0, 0.0,
               1e3 * 2.0**-53, LINE),
    )  # fmt: skip
    return Evidence(numbers, plot(seed))


def fold(w: Tensor, b: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """gamma and beta moved into the Linear that follows."""
    return w * gamma, b + w @ beta


def off_line(x: Tensor, residual: Tensor, gamma: Tensor, beta: Tensor) -> float:
    """How far y is from the line gamma xhat + beta, on an input and on one far from it."""
    x, residual, gamma, beta = (t.double() for t in (x, residual, gamma, beta))
    xhat, y = add_norm(x, residual, eps=EPS), add_norm(x, residual, gamma, beta, eps=EPS)
    far = add_norm(100 + 7 * x, residual, eps=EPS), add_norm(100 + 7 * x, residual, gamma, beta, eps=EPS)
    return max((out - (gamma * normed + beta)).abs().max().item() for normed, out in ((xhat, y), far))


def plot(seed: int) -> Plot:
    """A row, normalised, and scaled and shifted: what mu and sigma do is lost, what gamma and beta do stays."""
    pattern = torch.randn(SHOWN, generator=generator(seed))
    rows, normed, scaled = [], [], []
    for mean, deviation, gamma, beta in product(MEANS, DEVIATIONS, GAMMAS, BETAS):
        row = mean + deviation * pattern
        weight, bias = torch.full((SHOWN,), gamma), torch.full((SHOWN,), beta)
        rows.append(values(row))
        normed.append(values(add_norm(row, eps=EPS)))
        scaled.append(values(add_norm(row, None, weight, bias, eps=EPS)))
    return Plot(
        "One token: before, normalised, scaled and shifted",
        tuple(range(1, SHOWN + 1)),
        (
            Curve("x = μ + σ pattern", tuple(rows)),
            Curve("x̂, normalised", tuple(normed)),
            Curve("γ x̂ + β", tuple(scaled)),
        ),
        "feature",
        "value",
        (
            Control("μ", MEANS, 2),
            Control("σ", DEVIATIONS, 1),
            Control("γ", GAMMAS, 4),
            Control("β", BETAS, 1),
        ),
    )


CLAIM = Claim(
    12,
    "affine",
    "Why there are gamma and beta",
    "A range of 0 to 1 is too restrictive, so the transformer paper introduced gamma and beta.",
    "wrong",
    "The premise is wrong (claim 9), and so is the origin: gamma and beta come with BatchNorm (2015) and LayerNorm "
    "(2016). They are one fixed number per feature, the same for every input, and before a Linear they add nothing "
    "that its weights could not do: they fold into it, and the outputs stay equal. (In Post-LN y is the next "
    "skip too: there they can not fold into the sublayer alone.)",
    "W (gamma xhat + beta) + b = (W diag gamma) xhat + (b + W beta)",
    "Ioffe & Szegedy 2015, arXiv:1502.03167, section 3; Ba et al. 2016, arXiv:1607.06450; the fold: algebra",
    run,
)
