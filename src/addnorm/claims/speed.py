"""Claim 14: faster training and better generalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from . import copy_task
from .adaptation import plot
from .base import Claim, Evidence, Number, reported
from .text_task import EVERY, Losses, train

COPIED, READ = copy_task.CHANCE / 2, 3.3
OPEN = "validation less training loss, mean over 5 seeds; reported, not asserted: it depends on the task"


def run(seed: int) -> Evidence:
    normed, plain = train(True, False, seed), train(False, False, seed)
    copied = copy_task.learning(12, seed)
    quick, slow = (steps_to(copied[name], COPIED) for name in ("Pre-LN", "skip only"))
    never = len(copied["skip only"])
    quick_text, slow_text = (EVERY * steps_to(losses.training, READ) for losses in (normed, plain))
    numbers = (
        Number("copy task: steps to half of chance's loss with norms, slowest seed", quick.max().item(), None, 0.0,
               slow.min().item() - 1, f"fewer than the quickest seed without, {slow.min():.0f} ({never}: never)"),
        Number("text: steps to a loss of 3.3 with norms, slowest seed", quick_text.max().item(), None, 0.0,
               slow_text.min().item(), f"at most those of the quickest seed without, {slow_text.min():.0f}"),
        *(reported(f"text: gap of validation to training, {name}", gap(losses), OPEN)
          for name, losses in (("with norms", normed), ("without", plain))),
    )  # fmt: skip
    return Evidence(numbers, plot({"with norms": normed, "without": plain}))


def steps_to(losses: Tensor, goal: float) -> Tensor:
    """The first row at or below the goal, for each run; one past the last if there is none."""
    below = torch.cat((losses <= goal, torch.ones(1, losses.shape[1], dtype=torch.bool)))
    return below.double().argmax(0).double()


def gap(losses: Losses) -> float:
    return (losses.validation[-1] - losses.training[-1]).mean().item()


CLAIM = Claim(
    14,
    "speed",
    "Speed and generalisation",
    "Normalisation speeds up training and improves generalisation.",
    "loose",
    "Speed and stability: right for deep residual stacks, with the placement of claim 2. Generalisation depends on "
    "the task: the gap between training and validation is shown for a small text model, and nothing general follows "
    "from it.",
    "steps to a loss, with and without norms; gap = validation loss - training loss",
    "Ba et al. 2016, arXiv:1607.06450; Xiong et al. 2020, arXiv:2002.04745; measured here",
    run,
)
