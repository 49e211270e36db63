"""Wrong addresses and types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from addnorm import reference
from addnorm.call import Call, Gradient

from .base import Grads, Mutant, Results, rejected_by

TRUE_STREAM = reference.stream


def without_tail(t: Tensor) -> Tensor:
    """A new tensor like t, whose last columns, beyond a multiple of eight, are left as they were found."""
    whole = t.shape[-1] // 8 * 8
    out = torch.empty(t.shape, dtype=t.dtype)
    out[..., :whole] = t[..., :whole]
    return out


@rejected_by("results_agree")
class LastColumnsDropped(Mutant):
    """y's ragged end is not written."""

    def forward(self, call: Call, **options: Any) -> Results:
        y, z, stats = super().forward(call, **options)
        return without_tail(y), z, stats


@rejected_by("results_agree")
class LastColumnsOfTheGradientDropped(Mutant):
    """dx's ragged end is not written."""

    def backward(self, call: Gradient) -> Grads:
        grads = super().backward(call)
        dx = grads["x"]
        return grads if dx is None else {**grads, "x": without_tail(dx)}


@rejected_by("outputs_are_written_whole")
class TailOfOutDropped(Mutant):
    """`out` is written up to a multiple of eight columns."""

    def forward(self, call: Call, **options: Any) -> Results:
        y, z, stats = super().forward(call, **{**options, "out": None})
        out, whole = options.get("out"), y.shape[-1] // 8 * 8
        if out is None:
            return y, z, stats
        out[..., :whole] = y[..., :whole]
        return out, z, stats


@rejected_by("outputs_may_be_inputs")
class ReadsAfterWriting(Mutant):
    """y is written before z is made."""

    def forward(self, call: Call, **options: Any) -> Results:
        y, _, stats = super().forward(call, **{**options, "stream_out": None})
        again = {**options, "out": None}
        return y, super().forward(call, **again)[1], stats


@rejected_by("results_agree")
class TakesEverythingForContiguous(Mutant):
    """Strides are not looked at."""

    def forward(self, call: Call, **options: Any) -> Results:
        x, strides = call.x, torch.empty(call.x.shape, device="meta").stride()
        inside = x.untyped_storage().nbytes() // x.itemsize - x.storage_offset() >= x.numel()
        return super().forward(replace(call, x=x.as_strided(x.shape, strides)) if inside else call, **options)


@rejected_by("results_agree")
class AlwaysFloat32(Mutant):
    """float64 tensors are computed in float32."""

    def forward(self, call: Call, **options: Any) -> Results:
        given = {k: None if t is None else t.float() for k, t in call.operands.items()}
        y, z, stats = super().forward(replace(call, **given), **options)
        return y, z, None if stats is None else stats.to(call.compute_dtype)


@rejected_by("results_agree")
class NormOfTheRoundedStream(Mutant):
    """y comes from z as stored."""

    def forward(self, call: Call, **options: Any) -> Results:
        rounded = lambda call: TRUE_STREAM(call).to(call.stream_dtype).to(call.compute_dtype)  # noqa: E731
        with mock.patch.object(reference, "stream", rounded):
            return super().forward(call, **options)


def flushed(t: Tensor) -> Tensor:
    return torch.where(t.abs() < torch.finfo(t.dtype).tiny, 0, t)


@rejected_by("lone_subnormals_are_kept")
class SubnormalOutputsFlushed(Mutant):
    """The rounding takes subnormal values for zeros, as the processor's own does."""

    def forward(self, call: Call, **options: Any) -> Results:
        y, z, stats = super().forward(call, **options)
        return flushed(y), z, stats


@rejected_by("lone_subnormals_are_kept")
class SubnormalGradientsFlushed(Mutant):
    """The same of dx."""

    def backward(self, call: Gradient) -> Grads:
        grads = super().backward(call)
        dx = grads["x"]
        return grads if dx is None else {**grads, "x": flushed(dx)}
