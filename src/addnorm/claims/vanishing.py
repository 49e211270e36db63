"""Claim 5: gradients through many layers, with and without skips."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import SIGMAS, Claim, Evidence, Number, generator, near, values

NETS, WIDTH, DEPTH, SHOWN = 32, 128, 20, 40
VARIANCES = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)
SIGMA2 = 0.5


def run(seed: int) -> Evidence:
    weights = torch.randn(SHOWN, NETS, WIDTH, WIDTH, generator=generator(seed)) / math.sqrt(WIDTH)
    plain, skip = (through(weights[:DEPTH], SIGMA2, identity)[-1].item() for identity in (False, True))
    held = normed(math.sqrt(SIGMA2) * weights[:DEPTH])[-1].item()
    # A layer multiplies |g|^2 by a random factor with these relative variances.
    plain_spread, skip_spread = 2 / WIDTH, (4 * SIGMA2 + 2 * SIGMA2**2) / (1 + SIGMA2) ** 2 / WIDTH
    growth = 1 + 1 / WIDTH  # 1 - 1/d for the mean, 1 - 1/d for W's own direction, 1 + 3/d for E[1/variance]
    numbers = (
        ratio(f"|g_0|^2 / |g_{DEPTH}|^2 without skips", plain, SIGMA2**DEPTH, plain_spread, "sigma^(2L)"),
        ratio("the same with skips", skip, (1 + SIGMA2) ** DEPTH, skip_spread, "(1 + sigma^2)^L"),
        ratio("without skips, with LayerNorm", held, growth**DEPTH, 2 * plain_spread,
              "(1 + 1/d)^L: each norm divides by what its matrix has grown"),
    )  # fmt: skip
    return Evidence(numbers, plot(weights))


def ratio(name: str, value: float, expected: float, spread: float, formula: str) -> Number:
    deviation = math.sqrt(((1 + spread) ** DEPTH - 1) / NETS)
    why = f"{formula}; a layer's factor varies by {spread:.3g} of its square, {NETS} nets, {SIGMAS} deviations"
    return near(name, value, expected, SIGMAS * deviation * expected, why)


def through(weights: Tensor, sigma2: float, identity: bool) -> Tensor:
    """|g_l|^2 / |g_L|^2 by the number of layers gone back, mean over the nets."""
    g = torch.ones(NETS, WIDTH, 1)
    squares = [g.square().sum(1).mean()]
    for w in weights:
        g = math.sqrt(sigma2) * w.mT @ g + (g if identity else 0)
        squares.append(g.square().sum(1).mean())
    return torch.stack(squares) / squares[0]


def normed(weights: Tensor) -> Tensor:
    """The same for x -> LN(W x): no skip, and no dependence on W's scale."""
    inputs = [torch.randn(NETS, 1, WIDTH, generator=generator(0)).requires_grad_()]
    for w in weights:
        inputs.append(add_norm(inputs[-1] @ w.mT, eps=0.0))
    direction = torch.randn(NETS, 1, WIDTH, generator=generator(1))
    gradients = torch.autograd.grad((inputs[-1] * direction).sum(), inputs)
    squares = torch.stack([g.square().sum(-1).mean() for g in reversed(gradients)])
    return squares / squares[0]


def plot(weights: Tensor) -> Plot:
    layers = tuple(range(SHOWN + 1))
    plain, skip, plain_law, skip_law = [], [], [], []
    for sigma2 in VARIANCES:
        plain.append(values(through(weights, sigma2, False)))
        skip.append(values(through(weights, sigma2, True)))
        plain_law.append(tuple(sigma2**n for n in layers))
        skip_law.append(tuple((1 + sigma2) ** n for n in layers))
    return Plot(
        "The gradient's mean square, going back through a linear net",
        layers,
        (
            Curve("with skips", tuple(skip)),
            Curve("without", tuple(plain)),
            Curve("without, with LayerNorm", (values(normed(weights)),)),
            Curve("(1 + σ²)^n", tuple(skip_law), "dashes"),
            Curve("σ^(2n)", tuple(plain_law), "dashes"),
        ),
        "layers gone back, n",
        "|g|² over the last layer's",
        (Control("σ², variance of the layer's gain", VARIANCES, 2),),
        log_y=True,
    )


CLAIM = Claim(
    5,
    "vanishing",
    "Skips against vanishing gradients",
    "Skip connections solve the vanishing gradient problem of deep networks.",
    "loose",
    "In a linear net each layer multiplies the gradient's mean square by the variance of its gain: below 1 it "
    "vanishes. With skips it is multiplied by 1 + that variance, and explodes with depth unless a norm, a small "
    "initialisation or a scale holds it. And plain nets need not vanish: "
    "with a norm in each layer the gradient keeps its size, as He et al. noted of BatchNorm. What skips then ease is "
    "optimisation itself.",
    "y = W x: E|g_0|^2 = sigma^(2L) |g_L|^2        y = x + W x: E|g_0|^2 = (1 + sigma^2)^L |g_L|^2",
    "derived here, W ~ N(0, sigma^2/d); He et al. 2015, arXiv:1512.03385, section 4.1; Balduzzi et al. 2017, "
    "arXiv:1702.08591",
    run,
)
