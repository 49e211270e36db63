"""Wrong gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from addnorm import reference
from addnorm.call import Gradient

from .base import Grads, Mutant, faulty, rejected_by

TRUE_COLUMN_SUM = reference.column_sum


def sum_in_half(t: Tensor) -> Tensor:
    """A running sum in bfloat16."""
    rows = t.reshape(-1, t.shape[-1]).bfloat16()
    return rows.unflatten(0, (-1, 1000)).sum(0).sum(0).to(t.dtype) if len(rows) % 1000 == 0 else TRUE_COLUMN_SUM(t)


def sum_by_threads(t: Tensor) -> Tensor:
    parts = t.reshape(-1, t.shape[-1]).tensor_split(torch.get_num_threads())
    return torch.stack([part.sum(0) for part in parts]).sum(0)


faulty("long_column_sums_are_float32", "SumsInHalf", (reference, "column_sum", sum_in_half))
faulty("threads_do_not_matter", "OnePartialSumPerThread", (reference, "column_sum", sum_by_threads))


@rejected_by("results_agree")
class NoStreamGradient(Mutant):
    """What arrives on z itself is lost."""

    def backward(self, call: Gradient) -> Grads:
        return super().backward(replace(call, ds=None))


@rejected_by("results_agree")
class OffsetOnlyForward(Mutant):
    """weight_offset is left out of the backward."""

    def backward(self, call: Gradient) -> Grads:
        return super().backward(replace(call, weight_offset=0.0))


@rejected_by("results_agree")
class ResidualScaleOnlyForward(Mutant):
    """The residual's gradient lacks its scale."""

    def backward(self, call: Gradient) -> Grads:
        return super().backward(replace(call, residual_scale=1.0))


@rejected_by("only_asked_gradients")
class ScaleGradientFromStream(Mutant):
    """branch_scale's gradient rebuilt from z / branch_scale in place of x."""

    def backward(self, call: Gradient) -> Grads:
        if call.branch_scale is not None and call.x is not None:
            call = replace(call, x=(call.z / call.branch_scale).to(call.x_dtype))
        return super().backward(call)


@rejected_by("results_agree")
class ScaleGradientFromStreamAgain(ScaleGradientFromStream):
    """The same, where the scale is 0."""


@rejected_by("unasked_gradients_are_not_made")
class AllGradients(Mutant):
    """Computes what nobody asked for."""

    def backward(self, call: Gradient) -> Grads:
        return super().backward(replace(call, needs=[True] * len(call.needs)))


@rejected_by("only_asked_gradients")
class BiasGradientOnlyWithWeight(Mutant):
    """A gradient that is right only in company."""

    def backward(self, call: Gradient) -> Grads:
        grads = super().backward(call)
        bias = grads["bias"]
        return grads if bias is None or call.needed["weight"] else {**grads, "bias": torch.zeros_like(bias)}
