"""The operators' arguments, checked. `add_norm` checks its own and says more; an operator may be called by hand, and a
kernel reads past the end of what does not fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .arguments import as_call, as_gradient
from .call import CALL_TENSORS, GRADIENT_TENSORS, Call, Gradient, check_seed, check_tensor, describe
from .checks import check_dtype, check_number, check_probability
from .norms import NORMS, policy


def checked_call(given: dict[str, Any]) -> Call:
    """The call that a forward operator's arguments describe, or the error that they deserve."""
    call = as_call(given)
    refuse_tangents("forward", call.operands.values())
    policy(call.norm)  # or the error that lists them
    describe(
        call.x, call.residual, call.weight, call.bias, norm=call.norm, eps=call.eps, branch_bias=call.branch_bias,
        branch_scale=call.branch_scale, row_scale=call.row_scale, residual_scale=call.residual_scale,
        dropout_p=call.dropout_p, seed=call.seed, weight_offset=call.weight_offset, out_dtype=call.out_dtype,
        stream_dtype=call.stream_dtype,
    )  # fmt: skip
    check_tensor("row_scale", call.row_scale, call.x, shapes=[call.x.shape[:-1]])  # not spread over the rows here
    if call.dropout_p and call.seed is None:
        raise ValueError("dropout needs a seed")
    return call


def checked_gradient(arguments: tuple[Any, ...]) -> Gradient:
    """The same for ``addnorm::backward``."""
    call = as_gradient(arguments)
    refuse_tangents("backward", (getattr(call, field.name) for field in fields(call)))
    policy(call.norm)
    rows, width = call.z.shape[:-1], call.z.shape[-1:]
    shapes = {
        "dy": [call.z.shape], "ds": [call.z.shape], "x": [call.z.shape],
        "stats": [(*rows, NORMS[call.norm].stats_per_row)], "row_scale": [rows], "weight": [width],
        "branch_bias": [width], "branch_scale": [(), width],
    }  # fmt: skip
    check_tensor("z", call.z, call.z)
    for name, allowed in shapes.items():
        if getattr(call, name) is not None:
            check_tensor(name, getattr(call, name), call.z, shapes=allowed)
    if call.dy is None and call.ds is None:
        raise ValueError("neither dy nor ds is given")
    if call.stats.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"stats must be torch.float32 or torch.float64, got {call.stats.dtype}")
    for name in ("weight", "branch_bias", "branch_scale", "row_scale"):
        if call.needed[name] and getattr(call, name) is None:
            raise ValueError(f"a gradient is asked for of {name}, which is not given")
    if (call.needed["branch_scale"] or call.needed["row_scale"]) and call.x is None:
        raise ValueError("the gradient of a scale needs x")
    for name in ("x_dtype", "residual_dtype", "bias_dtype"):
        check_dtype(name, getattr(call, name))
    check_number("residual_scale", call.residual_scale)
    check_number("weight_offset", call.weight_offset)
    check_probability("dropout_p", call.dropout_p)
    check_seed(call.seed, call.z)
    if call.dropout_p and call.seed is None:
        raise ValueError("dropout needs a seed")
    return call


def check_devices(call: Call | Gradient, **results: Tensor | None) -> None:
    """One device has all tensors: for the fake kernels, which torch also takes where only some are on "meta"."""
    names = CALL_TENSORS if isinstance(call, Call) else GRADIENT_TENSORS
    for name, t in {**{name: getattr(call, name) for name in names}, **results}.items():
        if t is not None and t.device != call.main.device:
            raise ValueError(
                f"{name} is on {t.device}, others on {call.main.device}: all tensors must be on one device"
            )


def refuse_tangents(name: str, values: Iterable[Any]) -> None:
    """Results without a tangent would mean that their derivative is zero; csrc/torch/operators.cpp in Python."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in values):
        raise NotImplementedError(f"addnorm::{name} has no forward-mode derivative: differentiate addnorm.add_norm")
