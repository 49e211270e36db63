"""The short way of a call like an earlier one: checked, chosen and prepared then, it is only launched now.

For backends in Python, where describing and checking takes longer than a small kernel: see `Backend.plan`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import Plan, select
from .call import describe
from .norms import policy
from .plain import PLAIN, is_plain_thread

ALIGNED = 16  # bytes
MOST = 4096  # plans kept; a new one costs little more than the ordinary way
NUMBERS = ("eps", "residual_scale", "dropout_p", "weight_offset")
OTHERS = ("norm", "training", "out_dtype", "stream_dtype")
PLANS: dict[Any, Plan | None] = {}
UNKNOWN: Any = object()


def again(
    tensors: tuple[Any, ...], numbers: tuple[Any, ...], others: tuple[Any, ...], rare: tuple[Any, ...],
    backend: str | None, stream: bool,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """y and the stream, which means nothing unless asked for; None where the call must go the ordinary way: something
    watches, a gradient is wanted, an operand is not contiguous or not aligned, one of the `rare` arguments is given.

    `tensors` are those of `OPERANDS`, `numbers` and `others` those of `NUMBERS` and `OTHERS`. The errors are the
    ordinary ones: what was not yet carried out is described first, which checks it.
    """
    if torch.compiler.is_dynamo_compiling() or any(given is not None for given in rare):
        return None
    if not isinstance(others[0], str) or not is_plain_thread() or torch.is_autocast_enabled("cuda"):
        return None
    a, b, c, d = numbers
    kind = [numbers, type(a), type(b), type(c), type(d), others, backend, stream]  # the types, as True is 1
    addresses: list[int | None] = []
    grad = torch.is_grad_enabled()
    try:
        for t in tensors:
            if t is None:
                kind.append(None)
                addresses.append(None)
                continue
            if type(t) not in PLAIN or t.is_neg() or not t.is_contiguous() or (grad and t.requires_grad):
                return None
            address = t.data_ptr()
            if address % ALIGNED or not address:
                return None
            kind += t.dtype, t.shape, t.get_device()
            addresses.append(address)
        key = tuple(kind)
        plan = PLANS.get(key, UNKNOWN)
    except (RuntimeError, TypeError):  # sparse or nested; what can not be hashed, which is no option
        return None
    if plan is UNKNOWN:
        if len(PLANS) >= MOST:
            PLANS.clear()
        plan = PLANS[key] = make(tensors, numbers, others, backend, stream)
    return None if plan is None else plan(tensors[0], addresses)


def make(
    tensors: tuple[Any, ...], numbers: tuple[Any, ...], others: tuple[Any, ...], backend: str | None, stream: bool
) -> Plan | None:
    """The plan of a call, or the error that it deserves."""
    x, residual, weight, bias, branch_bias, branch_scale, row_scale = tensors
    options = dict(zip((*NUMBERS, *OTHERS), (*numbers, *others), strict=True))
    call = describe(
        x, residual, weight, bias, branch_bias=branch_bias, branch_scale=branch_scale, row_scale=row_scale, **options
    )
    policy(call.norm)  # or the error that lists them
    return select(call, backend).plan(call, keep_stream=stream)
