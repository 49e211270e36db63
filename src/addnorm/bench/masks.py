"""Which elements a contender's dropout kept, in some rows.

addnorm's mask is the one that its seed stands for. That of torch is read off its results: where it trains from the
zeros in the gradient of x, else from y, which fixes the mean, the scale and the mask of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .. import rng
from ..call import describe, dropout_threshold, with_seed
from .cases import Case
from .inputs import Inputs

SEED = 20170612
SIGMAS = 6  # a fair mask fails once in 500 million
PASSES = 4  # of fitting and choosing; the second already sees nearly every element
VISIBLE = 0.25  # |x| above which rounding can not hide whether an element was dropped


def seeded() -> None:
    """Puts torch's generator where `own_mask` expects it: to be called right before a contender draws."""
    torch.manual_seed(SEED)


def own_mask(case: Case, inputs: Inputs, rows: Tensor) -> Tensor:
    """What addnorm keeps after `seeded`, by the published scheme."""
    seeded()
    seed = with_seed(describe(inputs.x, inputs.residual, dropout_p=case.dropout_p)).seed
    assert seed is not None
    return rng.lanes(seed, rows, case.d) >= dropout_threshold(case.dropout_p)


def seen_mask(case: Case, inputs: Inputs, results: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """What a contender kept, judging by its results."""
    if not case.trains:
        return mask_from_y(case, inputs, results["y"][rows], rows)
    keep, unsure = results["dx"][rows] != 0, results["dresidual"][rows] == 0
    if "y" in results and unsure.any():  # a gradient that is zero, dropped or not
        keep = torch.where(unsure, mask_from_y(case, inputs, results["y"][rows], rows), keep)
    return keep


def mask_from_y(case: Case, inputs: Inputs, y: Tensor, rows: Tensor) -> Tensor:
    """In each row, z = residual + kept x / (1 - p) is a line in y: fit the line, choose for each element
    the nearer of kept and dropped, and again, as the choice betters the fit."""
    x, residual = inputs.x.detach()[rows].double(), inputs.residual.detach()[rows].double()
    bias = 0.0 if inputs.bias is None else inputs.bias.detach().double()
    xhat = (y.detach().double() - bias) / inputs.weight.detach().double()
    centred = xhat - xhat.mean(-1, keepdim=True)
    kept_x = x / (1 - case.dropout_p)
    z, keep = residual + x, torch.ones_like(x, dtype=torch.bool)
    for _ in range(PASSES):
        slope = (z * centred).sum(-1, keepdim=True) / (centred * centred).sum(-1, keepdim=True)
        branch = z.mean(-1, keepdim=True) + slope * centred - residual
        keep = (branch - kept_x).abs() < branch.abs()
        z = residual + kept_x * keep
    return keep


def unfair(case: Case, inputs: Inputs, keep: Tensor, rows: Tensor) -> str:
    """What is wrong with a mask's rate, or nothing."""
    p, visible = case.dropout_p, inputs.x.detach()[rows].abs() > VISIBLE
    count = int(visible.sum())
    rate = int((visible & ~keep).sum()) / count
    bound = SIGMAS * math.sqrt(p * (1 - p) / count)
    return "" if abs(rate - p) <= bound else f"drops {rate:.4f} of the elements, not {p:g} +- {bound:.2g}"
