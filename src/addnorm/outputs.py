"""Where results are written: the checks of ``out`` and ``stream_out``, and what shares memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .call import Call, check_tensor
from .plain import wants_grad


def check_out(name: str, out: Any, dtype: torch.dtype, call: Call) -> None:
    """A tensor for a result: of x's shape and the result's dtype, no gradient, no overlap but exactly x or residual."""
    if out is None:
        return
    check_tensor(name, out, call.x, shapes=(call.x.shape,))
    if out.dtype != dtype:
        raise ValueError(f"{name} has dtype {out.dtype}: this result has dtype {dtype}")
    own = () if isinstance(call.norm, str) else call.norm.own.values()
    if wants_grad(*call.operands.values(), out, *own):
        raise ValueError(f"{name} is for inference: call under torch.no_grad(), or without {name}, to have gradients")
    if torch.compiler.is_compiling():
        return  # there is no memory yet: the operator looks, and functionalisation copies what overlaps
    if out.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name} is an inference tensor: it can only be written inside torch.inference_mode()")
    if out.is_neg():
        raise ValueError(f"{name} is a view that negates what it writes (is_neg()): give a tensor of its own")
    if overlaps_itself(out):
        raise ValueError(f"{name} has strides {tuple(out.stride())}: several of its elements share one place in memory")
    for other, tensor in call.operands.items():
        if tensor is None or not overlaps(out, tensor):
            continue
        if other not in ("x", "residual") or not is_same_view(out, tensor):
            raise ValueError(f"{name} overlaps {other} in memory: it may be exactly x or residual, or be apart")


def check_apart(out: Tensor | None, stream_out: Tensor | None) -> None:
    if out is not None and stream_out is not None and overlaps(out, stream_out):
        raise ValueError("out and stream_out overlap in memory: they must be apart")


def overlaps_itself(t: Tensor) -> bool:
    """Whether elements share memory, or might: they do not where each stride exceeds what the smaller ones reach."""
    reach = 0
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def is_same_view(a: Tensor, b: Tensor) -> bool:
    steps = [[s for s, size in zip(t.stride(), t.shape, strict=True) if size > 1] for t in (a, b)]
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype and steps[0] == steps[1]


def overlaps(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share memory: exact for views of equal shape and strides, else by the spans they cover."""
    if torch.compiler.is_compiling() or 0 in (a.numel(), b.numel()):
        return False  # while compiling there are no addresses; functionalisation copies what overlaps
    start_a, start_b = a.data_ptr(), b.data_ptr()
    if start_a + span(a) <= start_b or start_b + span(b) <= start_a:
        return False
    delta = start_b - start_a
    if a.shape != b.shape or a.stride() != b.stride() or a.dtype != b.dtype or delta % a.itemsize:
        return True
    dims = sorted(zip(a.stride(), a.shape, strict=True), reverse=True)
    return meets(delta // a.itemsize, dims)


def span(t: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    return (1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))) * t.itemsize


def meets(delta: int, dims: Sequence[tuple[int, int]]) -> bool:
    """Whether delta is a sum of i * stride with |i| < size, for nested strides, largest first."""
    if not dims:
        return delta == 0
    (stride, size), *inner = dims
    if stride == 0:
        return meets(delta, inner)
    return any(abs(i) < size and meets(delta - i * stride, inner) for i in (delta // stride, delta // stride + 1))
