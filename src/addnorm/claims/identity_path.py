"""Claim 7: whether the skip keeps the gradient alive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..functional import add_norm, add_norm_stream
from ..plot import Control, Curve, Plot
from .base import SIGMAS, Claim, Evidence, Number, generator, values, within_factor

SITES, WIDTH, TOKENS = 48, 128, 16
SCALES, SEEDS = (0.25, 0.5, 1.0, 2.0), (1, 2, 3)
PRODUCT = (
    "prod (1 + rho_l)^(-1/2) with the measured rho; cos(x, f) ~ N(0, 1/d) moves each factor: exp(5 x {:.2g}) = {:.2g}"
)
TOTAL = (
    "|(I + J)' g|^2 = (1 + rho) |g|^2 and s^2 = 1 + rho balance: about 1; its spread, the tokens moving together: "
    "exp(5 x {:.2g}) = {:.2g}"
)


@dataclass(frozen=True)
class Path:
    """Gradient norms at each site, over the last one's, through everything and through the skips alone."""

    total: Tensor  # (sites + 1,)
    identity: Tensor
    predicted: Tensor  # from the sizes of skip and branch


def run(seed: int) -> Evidence:
    post, pre = paths(seed, 1.0, post=True), paths(seed, 1.0, post=False)
    x = torch.randn(WIDTH, generator=generator(seed)).requires_grad_()
    (cancelled,) = torch.autograd.grad((-x + x).sum(), x)
    # log s moves by cos sqrt(rho) / (1 + rho), rho = 1/2, at each site
    spread = math.sqrt(SITES / WIDTH) * math.sqrt(0.5) / 1.5
    slack = math.exp(SIGMAS * spread)
    # |(I + J)' g|^2 varies by (4 rho + 2 rho^2) / (1 + rho)^2 / d of its square at each site; |g| by half of that
    wander = math.sqrt(SITES / WIDTH * 2.5 / 2.25) / 2
    most = math.exp(SIGMAS * wander)
    numbers = (
        Number("gradient where f(x) = -x", cancelled.abs().max().item(), 0.0, 0.0, 0.0, "I + J_f = 0: exactly 0"),
        within_factor("Post-LN, 48 sites: through the skips alone", post.identity[0].item(), post.predicted[0].item(),
                      slack, PRODUCT.format(spread, slack)),
        within_factor("Post-LN: through everything", post.total[0].item(), 1.0, most,
                      TOTAL.format(wander, most)),
        Number("Pre-LN: through the skips alone", pre.identity[0].item(), 1.0, 1.0, 1.0, "nothing stands in it: 1"),
    )  # fmt: skip
    return Evidence(numbers, plot())


def paths(seed: int, scale: float, post: bool) -> Path:
    """Residual ReLU FFNs at initialisation, N(0, 1/d), Post-LN or Pre-LN."""
    random = generator(seed)
    weights = torch.randn(SITES, 2, WIDTH, WIDTH, generator=random) / math.sqrt(WIDTH)
    start = add_norm(torch.randn(TOKENS, WIDTH, generator=random))
    direction = torch.randn(TOKENS, WIDTH, generator=random)
    norms, factors = {}, []
    for detached in (False, True):
        inputs, factors = [start.clone().requires_grad_()], []
        for up, down in weights:
            x = inputs[-1]
            f = scale * F.relu((x if post else add_norm(x)) @ up) @ down
            f = f.detach() if detached else f
            factors.append((1 + f.square().sum(-1) / x.square().sum(-1)).mean().rsqrt() if post else torch.ones(()))
            inputs.append(add_norm(f, x) if post else add_norm_stream(f, x)[1])
        gradients = torch.autograd.grad((inputs[-1] * direction).sum(), inputs)
        found = torch.stack([g.norm() for g in gradients])
        norms[detached] = found / found[-1]
    behind = torch.stack([*factors, torch.ones(())]).detach()
    return Path(norms[False], norms[True], behind.flip(0).cumprod(0).flip(0))


def plot() -> Plot:
    found = [(paths(seed, scale, True), paths(seed, scale, False)) for scale in SCALES for seed in SEEDS]
    return Plot(
        "The gradient on its way back through 48 residual FFNs at initialisation",
        tuple(range(SITES + 1)),
        (
            Curve("Post-LN, everything", tuple(values(post.total) for post, _ in found)),
            Curve("Post-LN, skips alone", tuple(values(post.identity) for post, _ in found)),
            Curve("Π (1 + ρ)^(-1/2)", tuple(values(post.predicted) for post, _ in found), "dashes"),
            Curve("Pre-LN, skips alone", tuple(values(pre.identity) for _, pre in found)),
            Curve("Pre-LN, everything", tuple(values(pre.total) for _, pre in found)),
        ),
        "site (0 is the input)",
        "|gradient| over the last site's",
        (Control("scale of the branches", SCALES, 2), Control("seed", SEEDS)),
        log_y=True,
    )


CLAIM = Claim(
    7,
    "identity-path",
    "Can the gradient not vanish?",
    "Because of the + 1 the gradient can not vanish.",
    "wrong",
    "Wrong as stated. A branch f = -x gives a gradient of exactly 0. And in Post-LN each norm rescales the skip: "
    "after 48 sites the identity path carries about a ten-thousandth, while the whole gradient keeps its size: it "
    "survives through the branches. In Pre-LN the identity path is exactly 1.",
    "Post-LN: identity path = prod (1 + rho_l)^(-1/2),  rho_l = |f_l|^2 / |x_l|^2        Pre-LN: 1",
    "derived here from s^2 = |x + f|^2 / d; Xiong et al. 2020, arXiv:2002.04745, for the placements' gradients",
    run,
)
