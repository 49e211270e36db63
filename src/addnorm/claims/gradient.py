"""Claim 6: the gradient of a residual layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, generator, values

WIDTH, HIDDEN, EPS, STEP = 16, 32, 1e-5, 1e-5
SCALES, SEEDS = (0.0, 0.5, 1.0, 2.0, 4.0), (1, 2, 3)
ROUNDED = "the same gradient; sums of up to 48 terms in float64, relative to the largest element"
NUMERIC = "central differences with step 1e-5: error h^2/6 of the third derivative, and 2^-53/h of rounding"


def run(seed: int) -> Evidence:
    branch = Branch(seed, 1.0)
    x, g = torch.randn(2, WIDTH, generator=generator(seed + 1), dtype=torch.float64)
    x.requires_grad_()
    (found,) = torch.autograd.grad(x + branch(x), x, g)
    (normed,) = torch.autograd.grad(add_norm(branch(x), x, eps=EPS), x, g)
    with torch.no_grad():
        identity = torch.eye(WIDTH, dtype=x.dtype)
        by_hand = g + branch.jacobian(x).T @ g
        shifted = torch.stack([x + STEP * sign * e for e in identity for sign in (1, -1)])
        slopes = ((shifted + branch(shifted)) @ g).view(-1, 2).diff(dim=1).flatten() / (-2 * STEP)
        dz = norm_backward(x + branch(x), g)
        post = dz + branch.jacobian(x).T @ dz
    rounding, numeric = 100 * 2.0**-53, 100 * (STEP**2 + 2.0**-53 / STEP)
    numbers = (
        difference("autograd against (I + J_f)' g", found, by_hand, rounding, ROUNDED),
        difference("differences against (I + J_f)' g", slopes, by_hand, numeric, NUMERIC),
        difference("through Post-LN against (I + J_f)' dz", normed, post, rounding, ROUNDED),
        difference("mean of dz", dz.mean(), torch.zeros(()), rounding, "LayerNorm ignores a common shift: sum(dz) = 0"),
    )
    return Evidence(numbers, plot())


class Branch:
    """f(x) = B tanh(A x), and its Jacobian by hand."""

    def __init__(self, seed: int, scale: float) -> None:
        random = generator(seed)
        self.a = torch.randn(HIDDEN, WIDTH, generator=random, dtype=torch.float64) / math.sqrt(WIDTH)
        self.b = scale * torch.randn(WIDTH, HIDDEN, generator=random, dtype=torch.float64) / math.sqrt(HIDDEN)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.a.T) @ self.b.T

    def jacobian(self, x: Tensor) -> Tensor:
        return self.b @ ((1 - torch.tanh(self.a @ x) ** 2).unsqueeze(1) * self.a)


def norm_backward(z: Tensor, g: Tensor) -> Tensor:
    """dz of LayerNorm, by its formula."""
    s = (z.var(correction=0) + EPS).sqrt()
    xhat = (z - z.mean()) / s
    return (g - g.mean() - xhat * (g * xhat).mean()) / s


def difference(name: str, found: Tensor, expected: Tensor, band: float, why: str) -> Number:
    scale = max(expected.abs().max().item(), 1.0)
    return Number(f"{name}, largest difference", (found - expected).abs().max().item() / scale, 0.0, 0.0, band, why)


def plot() -> Plot:
    through, whole, normed, arriving = [], [], [], []
    for scale in SCALES:
        for seed in SEEDS:
            branch = Branch(seed, scale)
            x, g = torch.randn(2, WIDTH, generator=generator(seed + 1), dtype=torch.float64)
            jacobian, dz = branch.jacobian(x), norm_backward(x + branch(x), g)
            arriving.append(values(g))
            through.append(values(jacobian.T @ g))
            whole.append(values(g + jacobian.T @ g))
            normed.append(values(dz + jacobian.T @ dz))
    return Plot(
        "What arrives, and what goes on",
        tuple(range(1, WIDTH + 1)),
        (
            Curve("g, through the skip", tuple(arriving), "bars"),
            Curve("J' g, through the branch", tuple(through), "bars"),
            Curve("(I + J)' g", tuple(whole), "points"),
            Curve("through Post-LN", tuple(normed), "points"),
        ),
        "feature",
        "gradient",
        (Control("scale of f", SCALES, 2), Control("seed", SEEDS)),
    )


CLAIM = Claim(
    6,
    "gradient",
    "The gradient of a residual layer",
    "For y = f(x) + x the gradient is dL/dx = dL/dy (df/dx + 1).",
    "right",
    "Right, with matrices: the gradient is the transposed Jacobian of the branch plus the identity, applied to what "
    "arrives. Where a norm follows (Post-LN), what arrives at the sum is not g but dz, the gradient through the norm.",
    "dx = (I + J_f)' g        Post-LN: g := dz = (G - mean(G) - xhat mean(G xhat)) / s,  G = gamma dy",
    "He et al. 2016, arXiv:1603.05027, section 2; Ba et al. 2016, arXiv:1607.06450",
    run,
)
