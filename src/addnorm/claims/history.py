"""Claim 3: where skips come from."""

from __future__ import annotations

import torch

from ..functional import add_norm
from ..plot import Control, Curve, Plot
from .base import Claim, Evidence, Number, generator

ROWS, WIDTH, DEPTH = 64, 32, 48
GATES = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0)  # biases of the transform gate; Highway networks start at -1 to -4
SAME = "both halves are exact in binary, and the norm (eps = 0) does not see a common factor: equal bit for bit"


def run(seed: int) -> Evidence:
    f, x = torch.randn(2, ROWS, WIDTH, generator=generator(seed))
    half = torch.tensor(0.5)
    highway = add_norm(f, x, row_scale=half, residual_scale=0.5, eps=0.0)
    residual = add_norm(f, x, eps=0.0)
    difference = (highway - residual).abs().max().item()
    name = "LN(Highway with both gates at 1/2) - LN(x + f), largest"
    return Evidence((Number(name, difference, 0.0, 0.0, 0.0, SAME),), plot())


def plot() -> Plot:
    """The share of the input that passes unchanged, by closed form: this claim is history, not measurement."""
    depths = tuple(range(DEPTH + 1))
    carry = [1 - torch.tensor(gate).sigmoid().item() for gate in GATES]
    return Plot(
        "Weight of the identity path after l layers",
        depths,
        (
            Curve("Highway, (1 - T)^l", tuple(tuple(c**depth for depth in depths) for c in carry)),
            Curve("ResNet, 1", (tuple(1.0 for _ in depths),)),
        ),
        "layer l",
        "weight",
        (Control("gate bias, T = sigmoid(bias)", GATES, 3),),
    )


CLAIM = Claim(
    3,
    "history",
    "Skips come from ResNet",
    "Skip connections were introduced by ResNet in 2015.",
    "loose",
    "The identity form is ResNet's (December 2015). Gated skips came slightly earlier, in Highway Networks (May "
    "2015), after the LSTM's gated cell. With both gates at 1/2 a Highway layer is the residual sum halved, which a "
    "norm after it can not tell apart. This is history: the number below only checks that identity.",
    "Highway: y = T(x) f(x) + (1 - T(x)) x        ResNet: y = f(x) + x",
    "He et al. 2015, arXiv:1512.03385; Srivastava, Greff & Schmidhuber 2015, arXiv:1505.00387",
    run,
)
