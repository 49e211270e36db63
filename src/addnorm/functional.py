"""The public calls: `add_norm` and `add_norm_stream`."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor

from . import ops
from .again import again
from .backends import BACKENDS, Dispatch, explain, select, transforms_active
from .backends.native import EXTENSION
from .call import Call, check_tensor, describe, draw_seed, with_seed
from .norms import Norm, policy
from .outputs import check_apart, check_out

ARGUMENTS = signature(describe)


def add_norm(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str | Norm = "layer",
    eps: float = 1e-5,
    branch_bias: Tensor | None = None,
    branch_scale: float | Tensor | None = None,
    row_scale: Tensor | None = None,
    residual_scale: float = 1.0,
    dropout_p: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
    weight_offset: float = 0.0,
    out_dtype: torch.dtype | None = None,
    stream_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add & Norm in one pass over memory::

        z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias)
        y = (weight_offset + weight) * (z - mean) / sqrt(var + eps) + bias       # mean = 0 for "rms"

    Mean and variance (biased) are per row, over the last dimension.

    Args:
        x: The branch, a sublayer's output, ``(..., d)``: float64, float32, bfloat16 or float16, any strides.
        residual: The skip, of x's shape; None means 0, a plain fused norm.
        weight, bias: gamma and beta, ``(d,)``.
        norm: ``"layer"`` or ``"rms"``, which have kernels; in plain torch ``"prms"`` (statistics of the first 1/16 of
            the columns), ``"scale"`` (rows of length 1), ``"dyt"`` (tanh(alpha z), no statistics), ``"derf"``
            (erf(alpha z + shift)), or a policy object: ``addnorm.norms.DyT(alpha)`` has a learned alpha.
        eps: Added to the variance, inside the root; 0 is allowed.
        branch_bias: Added to x before dropout, ``(d,)``: a Linear's bias.
        branch_scale: A number, a 0-d or a ``(d,)`` tensor: LayerScale, ReZero.
        row_scale: One number per row, broadcastable to ``x.shape[:-1]``: stochastic depth, masks.
        residual_scale: A number: DeepNorm's alpha.
        dropout_p: Probability of dropping an element of the branch, in [0, 1). 16 random bits decide, so it holds to
            within 2^-17 (2^-16 just below 1). Kept elements are multiplied by 1/(1-p).
        training: False means no dropout.
        seed: The dropout mask's seed, an int or an int64 tensor on x's device. None draws one from torch's
            generator. The mask depends on seed, row and column alone: it is the same on every backend.
        weight_offset: 1.0 for norms whose weight is stored around zero (Gemma).
        out_dtype: y's dtype, by default ``torch.result_type(x, residual)``; float32 under autocast on CUDA.
        stream_dtype: The dtype in which z is kept for the backward, by default ``torch.result_type(x, residual)``.
        out: Where y is written, for inference only and outside torch.func transforms. It may be exactly x or residual;
            any other overlap is refused.
        backend: ``"cpu"``, ``"triton"`` or ``"eager"``; None chooses. A named backend never falls back.

    Returns:
        y, of x's shape, contiguous.

    The arithmetic and the sums are float32, or float64 if any tensor is; y is rounded once, from float64 to 16 bits
    by way of float32. Every tensor gets a gradient, to any order. Kept for the backward are z and the row's
    statistics, and x where a gradient of branch_scale or row_scale is asked for; never the mask.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.

    Source: Vaswani et al. 2017 (arXiv:1706.03762), Ba et al. 2016 (1607.06450), Zhang & Sennrich 2019 (1910.07467).

    >>> x, residual = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    >>> add_norm(x, residual, torch.ones(3), torch.zeros(3))
    tensor([[-0.9258, -0.4629,  1.3887]])
    """
    if EXTENSION is not None and backend is None and not torch.compiler.is_dynamo_compiling():
        y = EXTENSION.add_norm(
            x, residual, weight, bias, norm, eps, branch_bias, branch_scale, row_scale,
            residual_scale, dropout_p, training, seed, weight_offset, out_dtype, stream_dtype, out, None,
        )  # fmt: skip
        if y is not None:
            return y
    if seed is None and out is None:
        both = again(
            (x, residual, weight, bias, branch_bias, branch_scale, row_scale),
            (eps, residual_scale, dropout_p, weight_offset), (norm, training, out_dtype, stream_dtype), backend, False,
        )  # fmt: skip
        if both is not None:
            return both[0]
    call = describe(
        x, residual, weight, bias, norm=norm, eps=eps, branch_bias=branch_bias, branch_scale=branch_scale,
        row_scale=row_scale, residual_scale=residual_scale, dropout_p=dropout_p, training=training, seed=seed,
        weight_offset=weight_offset, out_dtype=out_dtype, stream_dtype=stream_dtype,
    )  # fmt: skip
    y, _ = run(call, backend, out=out)
    return y


def add_norm_stream(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str | Norm = "layer",
    eps: float = 1e-5,
    branch_bias: Tensor | None = None,
    branch_scale: float | Tensor | None = None,
    row_scale: Tensor | None = None,
    residual_scale: float = 1.0,
    dropout_p: float = 0.0,
    training: bool = True,
    seed: int | Tensor | None = None,
    weight_offset: float = 0.0,
    out_dtype: torch.dtype | None = None,
    stream_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    stream_out: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Add & Norm that also gives the sum: ``(y, stream)``, with stream = z as in `add_norm`.

    Pre-norm needs both: y is the next sublayer's input, the stream the next residual. The arguments are those of
    `add_norm`; ``stream_dtype`` is the stream's dtype and ``stream_out`` where it is written (inference only, as
    ``out``); so are the errors. y comes from the unrounded z; gradients flow back through both results.

    >>> x, residual = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    >>> y, stream = add_norm_stream(x, residual, norm="rms")
    >>> stream
    tensor([[1., 2., 6.]])
    """
    if EXTENSION is not None and backend is None and not torch.compiler.is_dynamo_compiling():
        both = EXTENSION.add_norm_stream(
            x, residual, weight, bias, norm, eps, branch_bias, branch_scale, row_scale,
            residual_scale, dropout_p, training, seed, weight_offset, out_dtype, stream_dtype, out, stream_out,
        )  # fmt: skip
        if both is not None:
            return both
    if seed is None and out is None and stream_out is None:
        both = again(
            (x, residual, weight, bias, branch_bias, branch_scale, row_scale),
            (eps, residual_scale, dropout_p, weight_offset), (norm, training, out_dtype, stream_dtype), backend, True,
        )  # fmt: skip
        if both is not None:
            return both
    call = describe(
        x, residual, weight, bias, norm=norm, eps=eps, branch_bias=branch_bias, branch_scale=branch_scale,
        row_scale=row_scale, residual_scale=residual_scale, dropout_p=dropout_p, training=training, seed=seed,
        weight_offset=weight_offset, out_dtype=out_dtype, stream_dtype=stream_dtype,
    )  # fmt: skip
    return run(call, backend, stream=True, out=out, stream_out=stream_out)


def explain_dispatch(
    x: Tensor, residual: Tensor | None = None, *args: Any, backend: str | None = None, **options: Any
) -> Dispatch:
    """Which backend `add_norm` would take for these arguments, and why not the others.

    The arguments are those of `add_norm`, ``out`` aside.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.

    >>> print(explain_dispatch(torch.ones(2, 3, device="meta")))
    eager takes this call
      cpu: no, x is on meta
      triton: no, x is on meta
      eager: yes
    """
    try:
        given = ARGUMENTS.bind(x, residual, *args, **options)
    except TypeError as error:
        raise TypeError(f"explain_dispatch() {error}") from None
    call = describe(*given.args, **given.kwargs)
    check_norm(call)
    return explain(call, backend)


def run(
    call: Call,
    backend: str | None,
    *,
    stream: bool = False,
    out: Tensor | None = None,
    stream_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ordinary path: y and the stream, through the operators."""
    check_norm(call)
    chosen = select(call, backend).name
    transformed = transforms_active()  # which differentiate plain torch
    if transformed and not (out is None and stream_out is None):
        raise ValueError(
            f"{'stream_out' if out is None else 'out'} can not be written inside torch.func transforms (grad, vmap, "
            "jvp) and forward-mode AD: call without it, and copy the result"
        )
    check_out("out", out, call.out_dtype, call)
    check_out("stream_out", stream_out, call.stream_dtype, call)
    check_apart(out, stream_out)
    call = with_seed(call, ops.draw_in_graph if torch.compiler.is_compiling() and not transformed else draw_seed)
    if transformed or isinstance(call.norm, Norm):  # whose own tensors no operator's schema has
        y, z, _ = BACKENDS[chosen].forward(call, keep_stream=stream, keep_stats=False, out=out, stream_out=stream_out)
        return y, y if z is None else z
    if out is None and stream_out is None:
        return ops.forward(call, chosen, stream=stream)
    y = call.x.new_empty(call.x.shape, dtype=call.out_dtype) if out is None else out
    z = stream_out
    if stream and z is None:
        z = call.x.new_empty(call.x.shape, dtype=call.stream_dtype)
    ops.forward_out(call, chosen, out=y, stream_out=z)
    return y, y if z is None else z


def check_norm(call: Call) -> None:
    """The norm is known, and its own numbers can meet x.

    Raises:
        TypeError, ValueError: listing the norms, or naming the number.
    """
    for name, value in policy(call.norm).own.items():
        if isinstance(value, Tensor):
            check_tensor(name, value, call.x)
