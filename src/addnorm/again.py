"""The short way of a call like an earlier one: checked, chosen and prepared then, it is only launched now.

For backends in Python, where describing and checking takes longer than a small kernel: see `Backend.forward_plan`.
Three kinds of calls come here: the public ones, and those of the two operators, which compiled graphs and autograd
make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from . import plain
from .arguments import BACKWARD_ARGUMENTS, FORWARD_ARGUMENTS, forward_arguments
from .backends import Backend, Plan, able, backend_of, native, select
from .call import CALL_TENSORS, GRADIENT_TENSORS, Call, describe, draw_seed
from .checked import checked_call, checked_gradient
from .norms import policy
from .plain import is_plain_thread, is_recording, wants_grad

MOST = 4096  # plans kept; a new one costs little more than the ordinary way
NUMBERS = ("eps", "residual_scale", "dropout_p", "weight_offset")
OTHERS = ("norm", "training", "out_dtype", "stream_dtype")
PLANS: dict[Any, Plan | None] = {}
UNKNOWN: Any = object()
NAMES = (str, type(None))
RECORD: Any = getattr(native.EXTENSION, "record", None)
kinds: Any = getattr(native.EXTENSION, "kinds", plain.kinds)


def find(tensors: tuple[Any, ...], options: Any, make: Callable[[], Plan | None]) -> tuple[Plan, list[Any]] | None:
    """The plan of a call on tensors like these with these options, and where the tensors lie. None where it must go the
    ordinary way: a tensor is not contiguous, not aligned or not plainly torch's own, or the backend has no plan.

    What was not yet carried out is described by `make`, which checks it or raises the error that it deserves.
    """
    found = kinds(tensors)
    if found is None:
        return None
    kind, addresses = found
    key = options, kind
    try:
        plan = PLANS.get(key, UNKNOWN)
    except TypeError:  # what can not be hashed is no option
        return None
    if plan is UNKNOWN:
        if len(PLANS) >= MOST:
            PLANS.clear()
        plan = PLANS[key] = make()
    return None if plan is None else (plan, addresses)


# -- the public calls --------------------------------------------------------------------------------------


def again(
    tensors: tuple[Any, ...], numbers: tuple[Any, ...], others: tuple[Any, ...], backend: str | None, stream: bool
) -> tuple[Tensor, Tensor] | None:
    """y and the stream, which means nothing unless asked for; None where the call must go the ordinary way: something
    watches, or `find` has nothing. It has no seed, and new memory is made for its results.

    `tensors` are those of `OPERANDS`, `numbers` and `others` those of `NUMBERS` and `OTHERS`. The errors are the
    ordinary ones.
    """
    norm, training, out_dtype, stream_dtype = others
    if torch.compiler.is_dynamo_compiling() or type(norm) is not str or type(backend) not in NAMES:
        return None
    if not is_plain_thread():
        return None
    eps, residual_scale, p, weight_offset = numbers
    options = (
        numbers, type(eps), type(residual_scale), type(p), type(weight_offset), type(training),  # as True is 1
        others, backend, stream, is_recording(), torch.is_autocast_enabled("cuda"),  # which chooses y's dtype
    )  # fmt: skip
    found = find(tensors, options, lambda: make(tensors, numbers, others, backend, stream))
    if found is None:
        return None
    plan, addresses = found
    x, residual, weight, bias, branch_bias, branch_scale, row_scale = tensors
    p = p if training else 0.0
    seed = draw_seed(x) if p else None
    addresses.append(None if seed is None else seed.data_ptr())
    y, z, stats = named(plan, addresses) if profiler._is_profiler_enabled else plan(addresses)
    if stats is not None:
        RECORD(
            x, residual, weight, bias, True, True, norm, float(eps), float(p), seed, branch_bias, branch_scale,
            row_scale, float(residual_scale), float(weight_offset), out_dtype, stream_dtype, backend, y, z, stats,
        )  # fmt: skip
    return y, y if z is None else z


def named(plan: Plan, addresses: list[Any]) -> Any:
    """A launch under the operator's name, which the dispatcher would tell a profiler."""
    with profiler.record_function("addnorm::forward"):
        return plan(addresses)


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
    chosen = select(call, backend)
    if row_scale is not None and row_scale.shape != x.shape[:-1]:
        return None  # it is spread over the rows
    recorded = wants_grad(*tensors)
    if recorded and native.EXTENSION is None:
        return None
    if call.dropout_p:
        call = replace(call, seed=x.new_empty((), dtype=torch.int64))  # one is drawn at each call
    keep_stream = stream or (recorded and not call.stream_is_x)
    return chosen.forward_plan(call, keep_stream=keep_stream, keep_stats=recorded)


# -- the operators -----------------------------------------------------------------------------------------


def split(names: tuple[str, ...], tensors: tuple[str, ...], apart: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """What takes an operator's tensors from its arguments, and what takes the others."""
    others = [name for name in names if name not in (*tensors, *apart)]
    return itemgetter(*map(names.index, tensors)), itemgetter(*map(names.index, others))


forward_tensors, forward_options = split(FORWARD_ARGUMENTS, CALL_TENSORS)
backward_tensors, backward_options = split(BACKWARD_ARGUMENTS, GRADIENT_TENSORS, apart=("needs",))
NEEDS = BACKWARD_ARGUMENTS.index("needs")


def forward(arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """y, the stream and the statistics of all the arguments of ``addnorm::forward``, or None as in `again`."""
    if not backend_of(arguments[-1], arguments[0]).in_python:
        return None
    found = find(forward_tensors(arguments), forward_options(arguments), lambda: make_forward(arguments))
    return None if found is None else found[0](found[1])


def make_forward(arguments: tuple[Any, ...]) -> Plan | None:
    backend, call, keep = forward_call(arguments)
    return backend.forward_plan(call, **keep)


def forward_call(arguments: tuple[Any, ...]) -> tuple[Backend, Call, dict[str, Any]]:
    """The backend that takes an operator's call, which need not be as the public call would have made it, the call, and
    what is kept of it; or the error that it deserves."""
    given = forward_arguments(arguments)
    call = checked_call(given)
    return able(arguments[-1], call), call, {name: given[name] for name in ("keep_stream", "keep_stats")}


def backward(arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The gradients of all the arguments of ``addnorm::backward``, or None as in `again`."""
    if not backend_of(arguments[-1], arguments[2]).in_python:
        return None
    options = tuple(arguments[NEEDS]), *backward_options(arguments)
    found = find(backward_tensors(arguments), options, lambda: make_backward(arguments))
    return None if found is None else found[0](found[1])


def make_backward(arguments: tuple[Any, ...]) -> Plan | None:
    call = checked_gradient(arguments)
    return able(arguments[-1], call).backward_plan(call)
