"""Claim 4: what the branch has to learn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..plot import Control, Curve, Plot
from .base import SIGMAS, Claim, Evidence, Number, generator, near

ROWS, WIDTH, NEAR, STEPS = 2048, 64, 0.1, 40
RATES = (0.05, 0.1, 0.2, 0.4)
TARGETS = {"x + 0.1 W x": (1.0, 0.1), "x + W x": (1.0, 1.0), "W x": (0.0, 1.0), "0": (0.0, 0.0)}
LENGTH = "its variance is 2/d^2 of its square (|W|^2 is chi-squared); 5 standard deviations"
CROSS = "1 from x and 0.01 from 0.1 W x; sampling of |x|^2 and of the trace of W, 5 standard deviations"
SOLVED = "h - x is linear in x, so least squares finds it; d times the condition number times 2^-53"


def run(seed: int) -> Evidence:
    random = generator(seed)
    x = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    w = torch.randn(WIDTH, WIDTH, generator=random, dtype=torch.float64) / math.sqrt(WIDTH)
    h = x + NEAR * x @ w
    square = NEAR**2
    sampling = SIGMAS * math.sqrt(2 / x.numel())
    fitted = torch.linalg.lstsq(x, h - x).solution
    condition = (torch.linalg.cond(x) * WIDTH * 2**-53).item()
    numbers = (
        near("first loss with a skip, f = 0", loss(x, h), square, SIGMAS * square * math.sqrt(2) / WIDTH,
             f"E|0.1 W x|^2 / d; {LENGTH}"),
        near("first loss of a plain layer, f = 0", loss(torch.zeros_like(h), h), 1 + square,
             sampling + SIGMAS * 2 * NEAR / WIDTH, CROSS),
        Number("fitted f - (h - x), largest coefficient", (fitted - NEAR * w).abs().max().item(), 0.0, 0.0,
               condition, SOLVED),
        near("first loss with a skip where h = 0", loss(x, torch.zeros_like(h)), 1.0, sampling,
             "E|x|^2 / d: a skip helps only if the target is near the identity; a plain layer starts at 0 here"),
    )  # fmt: skip
    return Evidence(numbers, plot(x, w))


def loss(y: Tensor, h: Tensor) -> float:
    return (y - h).square().mean().item()


def plot(x: Tensor, w: Tensor) -> Plot:
    """Gradient descent on a linear f that starts at 0, for targets near to and far from the identity."""
    skip, plain = [], []
    identity = torch.eye(WIDTH, dtype=x.dtype)
    for keep, share in TARGETS.values():
        goal = keep * identity + share * w
        for rate in RATES:
            skip.append(descend(goal - identity, x, rate))
            plain.append(descend(goal, x, rate))
    return Plot(
        "Learning h with and without a skip",
        tuple(range(STEPS + 1)),
        (Curve("f(x) + x", tuple(skip)), Curve("f(x)", tuple(plain))),
        "step of gradient descent",
        "mean squared error",
        (Control("target h", tuple(TARGETS)), Control("step size", RATES, 1)),
        log_y=True,
    )


def descend(goal: Tensor, x: Tensor, rate: float) -> tuple[float | None, ...]:
    """Losses of x @ a on x @ goal, a from 0. Only goal - a matters: it shrinks by I - rate x'x/n each step."""
    moment = x.T @ x / len(x)
    shrink = torch.eye(WIDTH, dtype=x.dtype) - rate * moment
    losses: list[float | None] = []
    for _ in range(STEPS + 1):
        found = ((goal.T @ moment @ goal).trace() / WIDTH).item()
        losses.append(found if found > 0 else None)  # a logarithmic axis has no 0
        goal = shrink @ goal
    return tuple(losses)


CLAIM = Claim(
    4,
    "target",
    "What the branch has to learn",
    "With a skip the layer computes y = h(x) + x, and learns the residual f(x) = h(x) - x.",
    "loose",
    "The two halves contradict each other. The layer computes y = f(x) + x; if the map wanted is h, then y = h and f "
    "= h - x. That is easier where h is near the identity: f starts near its goal. Where h is far from it, as for h = "
    "0, the skip is the handicap.",
    "y = x + f(x) = h(x)  =>  f = h - x",
    "He et al. 2015, arXiv:1512.03385, section 3.1",
    run,
)
