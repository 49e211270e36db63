"""Claim 2: training deep stacks."""

from __future__ import annotations

import math

from torch import Tensor

from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, values
from .copy_task import CHANCE, PLACEMENTS, RATE, RUNS, STEPS, VOCABULARY, WIDTH, learning

DEPTHS, LAST, EVERY = (2, 6, 12), 12, 2
SOLVED = CHANCE / 10
STUCK = CHANCE * 2 / 3
LEARNT = f"below a tenth of chance, ln {VOCABULARY} = {CHANCE:.3f}, in the worst of {RUNS} seeds"
LOST = f"chance is ln {VOCABULARY} = {CHANCE:.3f}; above two thirds of it even in the best of {RUNS} seeds"


def run(seed: int) -> Evidence:
    losses = {depth: learning(depth, seed) for depth in DEPTHS}
    final = {depth: {name: curves[-1] for name, curves in found.items()} for depth, found in losses.items()}
    numbers = (
        *(solved(name, LAST, final[LAST][name]) for name in ("Pre-LN", "DeepNorm")),
        *(stuck(name, LAST, final[LAST][name]) for name in ("Post-LN", "skip only", "norm only")),
        solved("Post-LN", DEPTHS[0], final[DEPTHS[0]]["Post-LN"]),
    )
    return Evidence(numbers, plot(losses))


def solved(name: str, layers: int, losses: Tensor) -> Number:
    what = f"{name}, {layers} layers: final loss, worst seed"
    return Number(what, losses.max().item(), 0.0, 0.0, SOLVED, LEARNT)


def stuck(name: str, layers: int, losses: Tensor) -> Number:
    what = f"{name}, {layers} layers: final loss, best seed"
    return Number(what, losses.min().item(), CHANCE, STUCK, math.inf, LOST)


def plot(losses: dict[int, dict[str, Tensor]]) -> Plot:
    curves = tuple(
        Curve(name, tuple(values(found[name][::EVERY, run]) for found in losses.values() for run in range(RUNS)))
        for name in PLACEMENTS
    )
    steps = len(losses[LAST]["Pre-LN"])
    return Plot(
        "Learning to copy, by placement",
        tuple(range(0, steps, EVERY)),
        curves,
        "step of Adam, no warm-up",
        f"loss (chance {CHANCE:.2f})",
        (Control("layers", DEPTHS, DEPTHS.index(LAST)), Control("seed", tuple(range(1, RUNS + 1)))),
    )


CLAIM = Claim(
    2,
    "placement",
    "Deep training",
    "Add & Norm stabilises the training of deep networks and improves it.",
    "right",
    "Right, but the placement decides. Twelve layers learn to copy in Pre-LN and in DeepNorm. In the same steps "
    "Post-LN, the original placement, hardly leaves chance, though two layers of it learn as quickly: Xiong et al. "
    "trace that to its gradients at the start, and warm-up gets over it. Skips alone and norms alone do not learn at "
    "that depth either.",
    "Post: x <- N(x + f(x))    Pre: x <- x + f(N(x))    DeepNorm: x <- N(alpha x + f(x)), alpha = (2N)^(1/4), beta = "
    "(8N)^(-1/4)",
    "Xiong et al. 2020, arXiv:2002.04745; Wang et al. 2022 (DeepNorm), arXiv:2203.00555; measured here: width "
    f"{WIDTH}, Adam {RATE:g}, {STEPS} steps",
    run,
)
