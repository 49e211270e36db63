"""The operators ``addnorm::forward``, ``addnorm::forward_out`` and ``addnorm::backward``; ``addnorm::seed`` and
``addnorm::mask`` for graphs.

The only file that speaks to torch.library: schemas, fake kernels, autograd. The arguments of an operator are
the fields of `Call` and `Gradient`, in their order, and a few switches. What most calls leave at its default comes
last: torch drops such arguments from the graphs it traces, and each that a graph passes costs time at every call.
Results that are not asked for are empty tensors.

The extension has the autograd of the operators (csrc/torch/node.cpp) and their kernels for the CPU, without Python
(csrc/torch/operators.cpp). What is not its own it hands to ``_forward`` and ``_backward``, the same in Python, past
the dispatcher where nothing watches; its autograd then calls ``_gradients``. Where it is not built, Python has the
autograd as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from . import again, reference, rng
from .arguments import FORWARD_ARGUMENTS, as_call, as_gradient, forward_arguments
from .backends import BACKENDS, KERNELS, able, backend_of, native
from .call import CALL_FIELDS, OPERANDS, Call, draw_seed, stored_dtype
from .checked import check_devices, checked_call, checked_gradient
from .norms import NORMS
from .outputs import check_apart, check_out
from .plain import is_plain, is_plain_thread, is_recording

OPTIONS = """str norm="layer", float eps=1e-5, float dropout_p=0.0, Tensor? seed=None, Tensor? branch_bias=None,
    Tensor? branch_scale=None, Tensor? row_scale=None, float residual_scale=1.0, float weight_offset=0.0"""
CALL = "Tensor x, Tensor? residual, Tensor? weight, Tensor? bias"
DTYPES = "ScalarType? out_dtype=None, ScalarType? stream_dtype=None"  # None: of x + residual
GRADIENT = "Tensor? dy, Tensor? ds, Tensor z, Tensor stats, bool[] needs, Tensor? weight"
KEPT = "Tensor? x=None, ScalarType? x_dtype=None, ScalarType? residual_dtype=None, ScalarType? bias_dtype=None"
BACKEND = "str? backend=None"  # None: the kernels of x's device

FORWARD = f"({CALL}, bool keep_stream, bool keep_stats, {OPTIONS}, {DTYPES}, {BACKEND})"
BACKWARD = f"({GRADIENT}, {OPTIONS}, {KEPT}, {BACKEND}) -> ({', '.join(f'Tensor d{name}' for name in OPERANDS)})"

# Operands may have any strides: Inductor needs no copies, and passes only the arguments that a graph has.
TAGS = (torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag)

LIBRARY = torch.library.Library("addnorm", "DEF")
for prefix in ("", "_"):
    LIBRARY.define(f"{prefix}forward{FORWARD} -> (Tensor y, Tensor stream, Tensor stats)", tags=TAGS)
    LIBRARY.define(f"{prefix}backward{BACKWARD}", tags=TAGS)
LIBRARY.define(
    f"forward_out({CALL}, {OPTIONS}, {DTYPES}, {BACKEND}, *, Tensor(a!) out, Tensor(b!)? stream_out) -> ()", tags=TAGS
)

# Graphs have these whole. The seed, since torch's own randint may be drawn again in a compiled backward to save memory.
LIBRARY.define("seed(Tensor x) -> Tensor", tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag))
LIBRARY.define(
    "mask(Tensor seed, SymInt rows, SymInt columns, int threshold) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)

DEFAULTS = {
    name: tuple([argument.default_value for argument in getattr(torch.ops.addnorm, name).default._schema.arguments])
    for name in ("forward", "backward")
}


def forward(call: Call, backend: str, *, stream: bool) -> tuple[Tensor, Tensor]:
    """y and the stream; the second means nothing unless asked for or kept for the backward."""
    graded = is_recording() or torch.jit.is_tracing()  # a trace may run either way, however it was made
    wants_grad = graded and any(t is not None and t.requires_grad for t in call.operands.values())
    keep_stream = stream or (wants_grad and not call.stream_is_x)
    operands, options = arguments_of(call, backend)
    arguments = (*operands, keep_stream, wants_grad, *options)
    record = again.RECORD if wants_grad else None
    if (wants_grad and record is None) or not unwatched(backend, (*call.operands.values(), call.seed)):
        y, z, _ = torch.ops.addnorm.forward(*arguments)
        return y, z
    with torch.no_grad():
        y, z, stats = BACKENDS[backend].forward(call, keep_stream=keep_stream, keep_stats=wants_grad)
    if record is not None:
        record(*arguments, y, z, stats)
    return y, y if z is None else z


def forward_out(call: Call, backend: str, *, out: Tensor, stream_out: Tensor | None) -> None:
    """Writes y to `out` and the stream to `stream_out`. No gradient."""
    operands, options = arguments_of(call, backend)
    short = unwatched(backend, (*call.operands.values(), out, stream_out))
    route = _write if short else torch.ops.addnorm.forward_out
    route(*operands, *options, out=out, stream_out=stream_out)


def unwatched(backend: str, tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call may go past the dispatcher, whose share of the host's time is the largest: to a backend in Python,
    with plain tensors, and neither traced, profiled nor under a mode."""
    return (
        BACKENDS[backend].in_python
        and not torch.compiler.is_compiling()
        and not profiler._is_profiler_enabled  # which the dispatcher tells the operator's name
        and is_plain_thread()
        and all(t is None or is_plain(t) for t in tensors)
    )


def arguments_of(call: Call, backend: str) -> tuple[list[Any], list[Any]]:
    """A call's arguments, before and behind the switches, with None for what None means."""
    stored = stored_dtype(call.x, call.residual)
    given = [getattr(call, name) for name in CALL_FIELDS]
    given[-2:] = (None if dtype == stored else dtype for dtype in given[-2:])
    return given[:4], [*given[4:], None if backend == KERNELS.get(call.x.device.type) else backend]


def all_arguments(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """An operator's arguments with those at the end that torch leaves out where they have their default."""
    return arguments + DEFAULTS[name][len(arguments) :]


@torch.library.impl(LIBRARY, "_forward", "CompositeExplicitAutograd")
@torch.library.impl(LIBRARY, "forward", "CompositeExplicitAutograd")
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    arguments = all_arguments("forward", arguments)
    y, z, stats = again.forward(arguments) or _forward_first(arguments)
    return y, _or_empty(z, y), _or_empty(stats, y)


def _forward_first(arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    backend, call, keep = again.forward_call(arguments)
    return backend.forward(call, **keep)


@torch.library.register_fake("addnorm::forward", lib=LIBRARY)
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    given = forward_arguments(arguments)
    call, keep_stream, keep_stats = as_call(given), given["keep_stream"], given["keep_stats"]
    check_devices(call)
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
    given = out_arguments(arguments)
    call = checked_call(given)
    able(given.get("backend"), call)
    check_out("out", out, call.out_dtype, call)
    check_out("stream_out", stream_out, call.stream_dtype, call)
    check_apart(out, stream_out)
    _write(*arguments, out=out, stream_out=stream_out)


def _write(*arguments: Any, out: Tensor, stream_out: Tensor | None) -> None:
    given = out_arguments(arguments)
    keep_stream = stream_out is not None
    backend_of(given.get("backend"), given["x"]).forward(
        as_call(given), keep_stream=keep_stream, keep_stats=False, out=out, stream_out=stream_out
    )
    for written in (out, stream_out):
        if written is not None:
            torch.autograd.graph.increment_version(written)  # a kernel writes behind autograd's back


def out_arguments(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of ``addnorm::forward_out`` by name."""
    return dict(zip((*CALL_FIELDS, "backend"), arguments, strict=False))


@torch.library.register_fake("addnorm::forward_out", lib=LIBRARY)
def _forward_out_fake(*arguments: Any, out: Tensor, stream_out: Tensor | None) -> None:
    check_devices(as_call(out_arguments(arguments)), out=out, stream_out=stream_out)


@torch.library.impl(LIBRARY, "_backward", "CompositeExplicitAutograd")
@torch.library.impl(LIBRARY, "backward", "CompositeExplicitAutograd")
def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    grads = _gradients(*arguments)
    return tuple([_or_empty(grad, arguments[2]) for grad in grads])


def _gradients(*arguments: Any) -> tuple[Tensor | None, ...]:
    """Those that are asked for by the arguments of ``addnorm::backward``; the others are None."""
    arguments = all_arguments("backward", arguments)
    return again.backward(arguments) or _gradients_first(arguments)


def _gradients_first(arguments: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    call = checked_gradient(arguments)
    grads = able(arguments[-1], call).backward(call)
    return tuple([grads[name] for name in OPERANDS])


@torch.library.register_fake("addnorm::backward", lib=LIBRARY)
def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    gradient = as_gradient(arguments)
    check_devices(gradient)
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


def _reference_backward(*arguments: Any) -> tuple[Tensor | None, ...]:
    """What differentiates a backward that is itself differentiated."""
    gradient = as_gradient(arguments)
    grads = reference.backward(gradient)
    return tuple(grads[name] for name in OPERANDS)


def draw_in_graph(x: Tensor) -> Tensor:
    """`draw_seed` as one operator."""
    return torch.ops.addnorm.seed(x.detach())


torch.library.impl(LIBRARY, "seed", "CompositeExplicitAutograd")(draw_seed)
torch.library.impl(LIBRARY, "mask", "CompositeExplicitAutograd")(rng.mask)


@torch.library.register_fake("addnorm::seed", lib=LIBRARY)
def _seed_fake(x: Tensor) -> Tensor:
    return x.new_empty((), dtype=torch.int64)


@torch.library.register_fake("addnorm::mask", lib=LIBRARY)
def _mask_fake(seed: Tensor, rows: int, columns: int, threshold: int) -> Tensor:
    return seed.new_empty((*seed.shape, rows, columns), dtype=torch.bool)


def _mask_batched(info: Any, dims: tuple[int, ...], seed: Tensor, *sizes: int) -> tuple[Tensor, int]:
    return torch.ops.addnorm.mask(seed.movedim(dims[0], 0), *sizes), 0


torch.library.register_vmap("addnorm::mask", _mask_batched, lib=LIBRARY)


def _or_empty(result: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if result is None else result


# -- autograd in Python, where the extension is not built ---------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = forward_arguments(inputs)
    call, keep_stream = as_call(given), given["keep_stream"]
    _, z, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(stats)
    if not given["keep_stats"] or not (keep_stream or call.stream_is_x):
        raise RuntimeError("addnorm::forward keeps what its backward needs only with keep_stats and keep_stream")
    ctx.places = [FORWARD_ARGUMENTS.index(name) for name in OPERANDS]
    needs = dict(zip(OPERANDS, _needs(ctx), strict=True))
    wants_x = needs["branch_scale"] or needs["row_scale"]
    ctx.save_for_backward(
        z if keep_stream else call.x,
        stats,
        call.weight,
        call.seed,
        call.branch_bias,
        call.branch_scale,
        call.row_scale,
        call.x if wants_x else None,
    )
    ctx.numbers = (call.norm, call.eps, call.dropout_p), (call.residual_scale, call.weight_offset)
    residual_dtype = call.x.dtype if call.residual is None else call.residual.dtype
    ctx.dtypes = (call.x.dtype, residual_dtype, call.out_dtype if call.bias is None else call.bias.dtype)
    same_dtype = call.residual is not None and residual_dtype == call.x.dtype
    ctx.dx_is_dresidual = call.branch_is_plain and call.residual_scale == 1 and same_dtype
    ctx.backend = given["backend"]
    ctx.inputs = len(inputs)


def _autograd(ctx: Any, dy: Tensor | None, ds: Tensor | None, _dstats: None) -> tuple[Tensor | None, ...]:
    if dy is None and ds is None:
        return (None,) * ctx.inputs
    saved = ctx.saved_tensors
    z, stats, weight, seed, *scales, x = saved
    needs = _needs(ctx)
    shared = ctx.dx_is_dresidual and needs[0] and needs[1]
    asked = [False, *needs[1:]] if shared else needs
    first, second = ctx.numbers
    arguments = (dy, ds, z, stats, asked, weight, *first, seed, *scales, *second, x, *ctx.dtypes, ctx.backend)
    if torch.is_grad_enabled():  # create_graph: the reference differentiates, the kernels do not
        grads = list(_reference_backward(*arguments))
    else:
        backend = backend_of(ctx.backend, z).name
        short = unwatched(backend, (dy, ds, *saved))
        results = (_gradients if short else torch.ops.addnorm.backward)(*arguments)
        grads = [g if needed else None for g, needed in zip(results, asked, strict=True)]
    if shared:
        grads[0] = grads[1]
    # Counted beforehand: torch shortens ctx.needs_input_grad during this call, which another thread may see.
    results = dict(zip(ctx.places, grads, strict=True))
    return tuple(results.get(i) for i in range(ctx.inputs))


def _needs(ctx: Any) -> list[bool]:
    return [ctx.needs_input_grad[place] for place in ctx.places]


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "addnorm::backward has no derivative of its own: differentiate addnorm.add_norm with create_graph=True"
    )


if native.EXTENSION is None:
    torch.library.register_autograd("addnorm::forward", _autograd, setup_context=_setup_context, lib=LIBRARY)
    torch.library.register_autograd("addnorm::backward", _no_double_backward, lib=LIBRARY)
else:
    native.EXTENSION.set_in_python(_forward, _backward, _gradients, _reference_backward)
    # What a compiled graph calls, torch.ops.addnorm.forward.default, is an object that holds a callable: ours answers
    # plain calls itself (csrc/torch/short_operators.h).
    _operators = (torch.ops.addnorm.forward.default, torch.ops.addnorm.backward.default)
    native.EXTENSION.set_dispatched(*(operator._op for operator in _operators))
    _operators[0]._op, _operators[1]._op = native.EXTENSION.short_forward, native.EXTENSION.short_backward
