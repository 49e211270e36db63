"""The operators ``addnorm::forward``, ``addnorm::forward_out`` and ``addnorm::backward``.

``_forward`` and ``_backward`` are the same in Python, on the CPU too.

The only file that speaks to torch.library: schemas, fake kernels, autograd. The arguments of an operator are
the fields of `Call` and `Gradient`, in their order. Results that are not asked for are empty tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from . import reference
from .backends import BACKENDS, native
from .call import CALL_FIELDS, GRADIENT_FIELDS, OPERANDS, Call, Gradient
from .norms import NORMS

CALL = """Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? branch_bias, Tensor? branch_scale,
    Tensor? row_scale, Tensor? seed, str norm, float eps, float residual_scale, float dropout_p,
    float weight_offset, ScalarType out_dtype, ScalarType stream_dtype"""
GRADIENT = """Tensor? dy, Tensor? ds, Tensor z, Tensor stats, Tensor? x, Tensor? weight, Tensor? branch_bias,
    Tensor? branch_scale, Tensor? row_scale, Tensor? seed, str norm, float eps, float residual_scale,
    float dropout_p, float weight_offset, ScalarType x_dtype, ScalarType residual_dtype, ScalarType bias_dtype,
    bool[] needs"""

FORWARD = f"({CALL}, bool keep_stream, bool keep_stats, str backend) -> (Tensor y, Tensor stream, Tensor stats)"
BACKWARD = f"({GRADIENT}, str backend) -> ({', '.join(f'Tensor d{name}' for name in OPERANDS)})"

PLAIN = {Tensor, Parameter, type(None)}

LIBRARY = torch.library.Library("addnorm", "DEF")
LIBRARY.define(f"forward{FORWARD}")
LIBRARY.define(f"forward_out({CALL}, str backend, *, Tensor(a!) out, Tensor(b!)? stream_out) -> ()")
LIBRARY.define(f"backward{BACKWARD}")
# On the CPU the extension implements forward and backward (csrc/torch/operators.cpp); other backends' calls come back.
LIBRARY.define(f"_forward{FORWARD}")
LIBRARY.define(f"_backward{BACKWARD}")


def forward(call: Call, backend: str, *, stream: bool) -> tuple[Tensor, Tensor]:
    """y and the stream; the second means nothing unless asked for or kept for the backward."""
    wants_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in call.operands.values())
    keep_stream = stream or (wants_grad and not call.stream_is_x)
    short = unwatched(backend, call.operands.values())
    if short and not wants_grad:
        y, z, _ = BACKENDS[backend].forward(call, keep_stream=keep_stream, keep_stats=False)
        return y, y if z is None else z
    arguments = (getattr(call, name) for name in CALL_FIELDS)
    route = Unwatched.apply if short else torch.ops.addnorm.forward
    y, z, _ = route(*arguments, keep_stream, wants_grad, backend)
    return y, z


def forward_out(call: Call, backend: str, *, out: Tensor, stream_out: Tensor | None) -> None:
    """Writes y to `out` and the stream to `stream_out`. No gradient."""
    arguments = (getattr(call, name) for name in CALL_FIELDS)
    short = unwatched(backend, (*call.operands.values(), out, stream_out))
    route = _forward_out if short else torch.ops.addnorm.forward_out
    route(*arguments, backend, out=out, stream_out=stream_out)


def unwatched(backend: str, tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call may go past the dispatcher, whose share of the host's time is the largest: to a backend in Python,
    with plain tensors, and neither traced nor under a mode."""
    return (
        BACKENDS[backend].in_python
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and {type(t) for t in tensors} <= PLAIN
    )


def as_call(arguments: Iterable[Any]) -> Call:
    return Call(**dict(zip(CALL_FIELDS, arguments, strict=True)))


def as_gradient(arguments: Iterable[Any]) -> Gradient:
    return Gradient(**dict(zip(GRADIENT_FIELDS, arguments, strict=True)))


@torch.library.impl(LIBRARY, "_forward", "CompositeExplicitAutograd")
@torch.library.impl(LIBRARY, "forward", "CompositeExplicitAutograd")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *call_arguments, keep_stream, keep_stats, backend = arguments
    call = as_call(call_arguments)
    y, z, stats = BACKENDS[backend].forward(call, keep_stream=keep_stream, keep_stats=keep_stats)
    return y, _or_empty(z, y), _or_empty(stats, y)


@torch.library.register_fake("addnorm::forward", lib=LIBRARY)
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *call_arguments, keep_stream, keep_stats, _ = arguments
    call = as_call(call_arguments)
    shape = call.x.shape
    kept = NORMS[call.norm].stats_per_row
    return (
        call.x.new_empty(shape, dtype=call.out_dtype),
        call.x.new_empty(shape if keep_stream else (0,), dtype=call.stream_dtype if keep_stream else call.out_dtype),
        call.x.new_empty((*shape[:-1], kept), dtype=call.compute_dtype)
        if keep_stats
        else call.x.new_empty((0,), dtype=call.out_dtype),
    )


@torch.library.impl(LIBRARY, "forward_out", "CompositeExplicitAutograd")
def _forward_out(*arguments: Any, out: Tensor, stream_out: Tensor | None) -> None:
    *call_arguments, backend = arguments
    call = as_call(call_arguments)
    keep_stream = stream_out is not None
    BACKENDS[backend].forward(call, keep_stream=keep_stream, keep_stats=False, out=out, stream_out=stream_out)
    for written in (out, stream_out):
        if written is not None:
            torch.autograd.graph.increment_version(written)  # a kernel writes behind autograd's back


@torch.library.register_fake("addnorm::forward_out", lib=LIBRARY)
def _forward_out_fake(*arguments: Any, out: Tensor, stream_out: Tensor | None) -> None:
    return None


@torch.library.impl(LIBRARY, "_backward", "CompositeExplicitAutograd")
@torch.library.impl(LIBRARY, "backward", "CompositeExplicitAutograd")
def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *gradient_arguments, backend = arguments
    gradient = as_gradient(gradient_arguments)
    grads = BACKENDS[backend].backward(gradient)
    return tuple(_or_empty(grads[name], gradient.z) for name in OPERANDS)


@torch.library.register_fake("addnorm::backward", lib=LIBRARY)
def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    *gradient_arguments, _ = arguments
    gradient = as_gradient(gradient_arguments)
    z, scale = gradient.z, gradient.branch_scale
    like = {
        "x": (z.shape, gradient.x_dtype),
        "residual": (z.shape, gradient.residual_dtype),
        "weight": (z.shape[-1:], gradient.weight),
        "bias": (z.shape[-1:], gradient.bias_dtype),
        "branch_bias": (z.shape[-1:], gradient.branch_bias),
        "branch_scale": (None if scale is None else scale.shape, scale),
        "row_scale": (z.shape[:-1], gradient.row_scale),
    }
    grads = []
    for name, (shape, dtype) in like.items():
        if gradient.needed[name]:
            grads.append(z.new_empty(shape, dtype=dtype.dtype if isinstance(dtype, Tensor) else dtype))
        else:
            grads.append(z.new_empty((0,)))
    return tuple(grads)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *call_arguments, keep_stream, keep_stats, backend = inputs
    call = as_call(call_arguments)
    _, z, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats)
    if not keep_stats or not (keep_stream or call.stream_is_x):
        raise RuntimeError("addnorm::forward keeps what its backward needs only with keep_stats and keep_stream")
    needs = dict(zip(OPERANDS, ctx.needs_input_grad, strict=False))
    wants_x = needs["branch_scale"] or needs["row_scale"]
    ctx.save_for_backward(
        z if keep_stream else call.x,
        stats,
        call.x if wants_x else None,
        call.weight,
        call.branch_bias,
        call.branch_scale,
        call.row_scale,
        call.seed,
    )
    ctx.settings = (
        call.norm,
        call.eps,
        call.residual_scale,
        call.dropout_p,
        call.weight_offset,
        call.x.dtype,
        call.x.dtype if call.residual is None else call.residual.dtype,
        call.out_dtype if call.bias is None else call.bias.dtype,
    )
    same_dtype = call.residual is not None and call.residual.dtype == call.x.dtype
    ctx.dx_is_dresidual = call.branch_is_plain and call.residual_scale == 1 and same_dtype
    ctx.backend = backend
    ctx.inputs = len(inputs)


def _autograd(ctx: Any, dy: Tensor | None, ds: Tensor | None, _dstats: None) -> tuple[Tensor | None, ...]:
    tensors = (dy, ds, *ctx.saved_tensors)  # which checkpointing lets nobody ask for twice
    arguments = (*tensors, *ctx.settings)
    needs = dict(zip(OPERANDS, ctx.needs_input_grad, strict=False))
    shared = ctx.dx_is_dresidual and needs["x"] and needs["residual"]
    asked = [needed and not (shared and name == "x") for name, needed in needs.items()]
    if torch.is_grad_enabled():  # create_graph: the reference differentiates, the kernels do not
        gradient = as_gradient((*arguments, asked))
        grads = reference.backward(gradient)
    else:
        short = unwatched(ctx.backend, tensors)
        results = (_backward if short else torch.ops.addnorm.backward)(*arguments, asked, ctx.backend)
        grads = {name: g if needed else None for name, g, needed in zip(OPERANDS, results, asked, strict=True)}
    if shared:
        grads["x"] = grads["residual"]
    # Counted beforehand: torch shortens ctx.needs_input_grad during this call, which another thread may see.
    return (*(grads[name] for name in OPERANDS), *[None] * (ctx.inputs - len(OPERANDS)))


class Unwatched(torch.autograd.Function):
    """``addnorm::forward`` with its derivative, past the dispatcher."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd)  # pyright: ignore[reportAssignmentType]


def _reference_backward(*arguments: Any) -> tuple[Tensor | None, ...]:
    grads = reference.backward(as_gradient(arguments))
    return tuple(grads[name] for name in OPERANDS)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "addnorm::backward has no derivative of its own: differentiate addnorm.add_norm with create_graph=True"
    )


torch.library.register_autograd("addnorm::forward", _autograd, setup_context=_setup_context, lib=LIBRARY)
torch.library.register_autograd("addnorm::backward", _no_double_backward, lib=LIBRARY)

if native.EXTENSION is not None:  # the autograd of its short way in differentiates through the reference too
    native.EXTENSION.set_reference_backward(_reference_backward)


def _or_empty(result: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty((0,)) if result is None else result
