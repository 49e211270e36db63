"""Claim 13: whether gamma and beta help."""

from __future__ import annotations

from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, reported, values
from .text_task import EVERY, RUNS, STEPS, Losses, train

OPEN = "mean over 5 seeds; reported, no direction is asserted: it depends on the task"
START = "gamma = 1 and beta = 0 change nothing before the first step: equal bit for bit"


def run(seed: int) -> Evidence:
    with_affine, without = train(True, True, seed), train(True, False, seed)
    first = (with_affine.training[0] - without.training[0]).abs().max().item()
    numbers = (
        Number("difference of the first losses, largest of 5 seeds", first, 0.0, 0.0, 0.0, START),
        *(reported(f"{what} loss, with less without gamma and beta", difference.item(), OPEN)
          for what, difference in (
              ("training", (with_affine.training - without.training)[-1].mean()),
              ("validation", (with_affine.validation - without.validation)[-1].mean()))),
    )  # fmt: skip
    return Evidence(numbers, plot({"with γ, β": with_affine, "without": without}))


def plot(found: dict[str, Losses]) -> Plot:
    """Losses on the text by step; the control chooses the part of the text and the seed."""
    parts = {"validation": lambda losses: losses.validation, "training": lambda losses: losses.training}
    return Plot(
        "A small text model",
        tuple(range(0, STEPS + 1, EVERY)),
        tuple(
            Curve(name, tuple(values(part(losses)[:, run]) for part in parts.values() for run in range(RUNS)))
            for name, losses in found.items()
        ),
        "step of Adam",
        "loss, nats a character",
        (Control("part of the text", tuple(parts)), Control("seed", tuple(range(1, RUNS + 1)))),
        log_y=True,
    )


CLAIM = Claim(
    13,
    "adaptation",
    "Do gamma and beta help?",
    "Gamma and beta let the model adapt where the normalised range is too narrow.",
    "loose",
    "They do give each feature a scale and a shift, but the next matrix could as well (claim 12), and whether they "
    "help is the task's affair: Xu et al. found LayerNorm without them better on four data sets, and that they can "
    "overfit. On the small text model here the difference is below 0.01 nats.",
    "y = gamma xhat + beta        against        y = xhat",
    "Xu et al. 2019, arXiv:1911.07013, section 3; measured here: 12 residual layers, width 48, 200 steps",
    run,
)
