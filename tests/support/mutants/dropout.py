"""Wrong masks, scales and seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from addnorm import reference, rng
from addnorm.call import Call, Gradient

from .base import Grads, Mutant, Results, faulty, rejected_by

TRUE_LANES, TRUE_KEEP, TRUE_STREAM = rng.lanes, reference.keep, reference.stream


def lane_order_by_rows(seed: int | Tensor, rows: int, columns: int) -> Tensor:
    """Under four rows the lanes of a Philox call come in another order."""
    whole = TRUE_LANES(seed, rows, -(-columns // 8) * 8)
    return (whole.unflatten(1, (-1, 8)).flip(-1).flatten(1) if rows < 4 else whole)[:, :columns]


def low_word_of_the_seed(seed: int | Tensor, rows: int, columns: int) -> Tensor:
    return TRUE_LANES(torch.as_tensor(seed) & 0xFFFFFFFF, rows, columns)


def scale_of_the_threshold(call: Call | Gradient, like: Tensor) -> Tensor:
    """65536 / (65536 - t), the inverse of the true rate, in place of 1 / (1 - p)."""
    t = min(round(65536 * call.dropout_p), 65535)
    return TRUE_KEEP(call, like) * (1 - call.dropout_p) * (65536 / (65536 - t))


def dropped_is_zero(call: Call) -> Tensor:
    z = TRUE_STREAM(call)
    return torch.where(TRUE_KEEP(call, z) == 0, 0, z) if call.dropout_p > 0 and call.residual is None else z


faulty("mask_is_the_published_one", "LaneOrderByRowCount", (rng, "lanes", lane_order_by_rows))
faulty("results_agree", "LaneOrderByRowCountAgain", (rng, "lanes", lane_order_by_rows))
faulty("mask_is_the_published_one", "LowWordOfTheSeed", (rng, "lanes", low_word_of_the_seed))
faulty("results_agree", "ScaleOfTheThreshold", (reference, "keep", scale_of_the_threshold))
faulty("specials_stay_in_their_row", "DroppedNaNIsZero", (reference, "stream", dropped_is_zero))


@rejected_by("mask_is_the_published_one")
class MaskNotReplayed(Mutant):
    """The backward takes every element for kept."""

    def backward(self, call: Gradient) -> Grads:
        return super().backward(replace(call, dropout_p=0.0))


@rejected_by("results_agree")
class MaskOfAnotherSeed(Mutant):
    """The backward draws another mask."""

    def backward(self, call: Gradient) -> Grads:
        return super().backward(call if call.seed is None else replace(call, seed=call.seed + 1))


@rejected_by("seeds_come_from_torch")
class SeedOfItsOwn(Mutant):
    """What is drawn depends on how many calls there were."""

    calls = 0

    def forward(self, call: Call, **options: Any) -> Results:
        self.calls += 1
        seed = None if call.seed is None else call.seed + self.calls
        return super().forward(replace(call, seed=seed), **options)


@rejected_by("dropout_off_draws_nothing")
class DrawsAlways(Mutant):
    """torch's generator moves on with every call."""

    def forward(self, call: Call, **options: Any) -> Results:
        torch.rand(())
        return super().forward(call, **options)
