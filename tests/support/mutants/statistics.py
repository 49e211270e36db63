"""Wrong statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from addnorm.call import Call
from addnorm.norms.layer import Layer
from addnorm.norms.rms import RMS

from .base import Mutant, Results, faulty, rejected_by

LAYER_STATISTICS = Layer.statistics


def layer_with(variance: Callable[[Tensor], Tensor], *, corrected: bool = True) -> Callable[..., Tensor]:
    """Layer.statistics with another variance of d = z - mean."""

    def statistics(self: Layer, z: Tensor, eps: float) -> Tensor:
        mu = z.mean(-1, keepdim=True)
        d = z - mu
        e = d.mean(-1, keepdim=True) if corrected else torch.zeros_like(mu)
        return torch.cat((mu, e, torch.rsqrt(variance(d - e) + eps)), dim=-1)

    return statistics


def mean_square(d: Tensor) -> Tensor:
    return d.square().mean(-1, keepdim=True)


def outside(self: Layer, z: Tensor, eps: float) -> Tensor:
    mu, e, r = LAYER_STATISTICS(self, z, 0.0).split(1, dim=-1)
    return torch.cat((mu, e, 1 / (1 / r + eps)), dim=-1)


def one_pass(self: Layer, z: Tensor, eps: float) -> Tensor:
    mu = z.mean(-1, keepdim=True)
    v = (z.square().mean(-1, keepdim=True) - mu.square()).clamp(min=0)
    return torch.cat((mu, torch.zeros_like(mu), torch.rsqrt(v + eps)), -1)


def unclamped(self: Layer, z: Tensor, eps: float) -> Tensor:
    mu = z.mean(-1, keepdim=True)
    v = z.square().mean(-1, keepdim=True) - mu.square()
    return torch.cat((mu, torch.zeros_like(mu), torch.rsqrt(v + eps)), -1)


def in_half(self: RMS, z: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(z.half().square().mean(-1, keepdim=True) + eps).to(z.dtype)


def neighbours(self: Layer, z: Tensor, eps: float) -> Tensor:
    """Statistics of the row before, in every row but the first."""
    own = LAYER_STATISTICS(self, z, eps)
    return own if z.dim() < 2 else torch.cat((own[:1], own[:-1]))


def over_all_rows(self: Layer, z: Tensor, eps: float) -> Tensor:
    """The sum over features taken in another order where there are many rows: last bits depend on the batch."""
    return LAYER_STATISTICS(self, z.flip(-1) if z.shape[0] > 16 else z, eps)


faulty("results_agree", "VarianceOverDMinusOne", (Layer, "statistics", layer_with(lambda d: d.var(-1, keepdim=True))))
faulty("results_agree", "EpsOutsideTheRoot", (Layer, "statistics", outside))
faulty("results_agree", "StatisticsOfTheRowBefore", (Layer, "statistics", neighbours))
faulty("exact_at_any_mean", "PlainTwoPass", (Layer, "statistics", layer_with(mean_square, corrected=False)))
faulty("exact_at_any_mean", "OnePass", (Layer, "statistics", one_pass))
faulty("no_worse_than_torch", "OnePassAgain", (Layer, "statistics", one_pass))
faulty("constant_rows_give_bias", "UnclampedVariance", (Layer, "statistics", unclamped))
faulty("half_squares_do_not_overflow", "SquaresInHalf", (RMS, "statistics", in_half))
faulty("rows_are_independent", "OrderOfSumsByRowCount", (Layer, "statistics", over_all_rows))


@rejected_by("rms_is_exact")
class StatisticsInHalf(Mutant):
    """Sums in bfloat16."""

    def forward(self, call: Call, **options: Any) -> Results:
        statistics = RMS.statistics

        def rounded(self: RMS, z: Tensor, eps: float) -> Tensor:
            return statistics(self, z.bfloat16(), eps).to(z.dtype)

        with mock.patch.object(RMS, "statistics", rounded):
            return super().forward(call, **options)
