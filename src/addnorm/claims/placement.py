"""Claim 2: training deep stacks."""

from __future__ import annotations

from torch import Tensor

from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, values
from .copy_task import CHANCE, PLACEMENTS, RUNS, learning

DEPTHS, LAST, EVERY = (2, 6, 12), 10, 4
SOLVED = 0.3  # the right token gets a probability of e^-0.3 = 74 %
LEARNT = f"solved: below {SOLVED}, a tenth of chance, in the worst of {RUNS} seeds"
STUCK = f"chance is ln 16 = {CHANCE:.3f}; nothing learnt: above two thirds of it in the best of {RUNS} seeds"


def run(seed: int) -> Evidence:
    losses = {name: [learning(name, depth, seed) for depth in DEPTHS] for name in PLACEMENTS}
    final = {name: curves[-1][-1] for name, curves in losses.items()}
    numbers = (
        *(Number(f"{name}, 12 layers: final loss, worst seed", final[name].max().item(), 0.0, 0.0, SOLVED, LEARNT)
          for name in ("Pre-LN", "DeepNorm")),
        *(Number(f"{name}, 12 layers: final loss, best seed", final[name].min().item(), CHANCE, CHANCE * 2 / 3,
                 float("inf"), STUCK) for name in ("Post-LN", "skip only", "norm only")),
        Number("Post-LN, 2 layers: final loss, worst seed", losses["Post-LN"][0][-1].max().item(), 0.0, 0.0, SOLVED * 2,
               "a shallow stack trains in Post-LN too: twice as much allowed as above"),
    )  # fmt: skip
    return Evidence(numbers, plot(losses))


def plot(losses: dict[str, list[Tensor]]) -> Plot:
    curves = tuple(
        Curve(name, tuple(values(depth[::EVERY, run]) for depth in depths for run in range(RUNS)))
        for name, depths in losses.items()
    )
    steps = len(losses["Pre-LN"][0])
    return Plot(
        "Learning to copy, by placement",
        tuple(range(0, steps, EVERY)),
        curves,
        "step of Adam, no warm-up",
        "loss (chance 2.77)",
        (Control("layers", DEPTHS, len(DEPTHS) - 1), Control("seed", tuple(range(1, RUNS + 1)))),
    )


CLAIM = Claim(
    2,
    "placement",
    "Deep training",
    "Add & Norm stabilises the training of deep networks and improves it.",
    "right",
    "Right, but the placement decides. Twelve layers learn to copy in Pre-LN and in DeepNorm; Post-LN, the original "
    "placement, needs warm-up or a few layers less and does not move in the same steps; skips alone and norms alone "
    "do not either.",
    "Post: x <- N(x + f(x))    Pre: x <- x + f(N(x))    DeepNorm: x <- N(alpha x + f(x)), alpha = (2N)^(1/4), beta = "
    "(8N)^(-1/4)",
    "Xiong et al. 2020, arXiv:2002.04745; Wang et al. 2022 (DeepNorm), arXiv:2203.00555; measured here: width 32, "
    "Adam 1e-3, 200 steps",
    run,
)
