"""THE reference: Add & Norm and its gradients in plain torch, differentiable to any order.

    z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias)
    y = (weight_offset + weight) * (z - mean) / sqrt(var + eps) + bias

It defines the result. Tests, benchmarks and the ``eager`` backend all use it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import rng
from .call import OPERANDS, Call, Gradient, dropout_threshold
from .norms import policy


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """y, the stream z as stored, and the statistics ``(..., stats_per_row)``."""
    norm = policy(call.norm)
    z = stream(call)
    stats = norm.statistics(z, call.eps)
    y = norm.normalise(z, stats)
    if call.weight is not None:
        y = y * gain(call.weight, call.weight_offset, z.dtype)
    if call.bias is not None:
        y = y + call.bias.to(z.dtype)
    return y.to(call.out_dtype), z.to(call.stream_dtype), stats


def stream(call: Call) -> Tensor:
    """z, unrounded, in the arithmetic's type."""
    dtype = call.compute_dtype
    z = call.x.to(dtype)
    if call.branch_bias is not None:
        z = z + call.branch_bias.to(dtype)
    if call.dropout_p > 0:
        z = z * keep(call, z)
    if call.branch_scale is not None:
        z = z * call.branch_scale.to(dtype)
    if call.row_scale is not None:
        z = z * call.row_scale.to(dtype).unsqueeze(-1)
    if call.residual is None:
        return z
    residual = call.residual.to(dtype)
    return z + (residual if call.residual_scale == 1 else call.residual_scale * residual)


def backward(call: Gradient) -> dict[str, Tensor | None]:
    """The gradient of each of `OPERANDS`, None where it is not needed.

    With G = (weight_offset + weight) * dy and ds the gradient that arrives on z itself:
    dz = norm.backward(G) + ds;  dresidual = residual_scale * dz;  dx = row_scale * branch_scale * mask * dz.

    In grad mode the statistics are computed again from z, so that the result differentiates.
    """
    dtype, needed = call.compute_dtype, call.needed
    norm = policy(call.norm)
    z = call.z.to(dtype)
    stats = norm.statistics(z, call.eps) if torch.is_grad_enabled() else call.stats
    grads: dict[str, Tensor | None] = dict.fromkeys(OPERANDS)
    dz = torch.zeros_like(z) if call.ds is None else call.ds.to(dtype, copy=True)
    if call.dy is not None:
        dy = call.dy.to(dtype)
        xhat = norm.normalise(z, stats)
        if needed["weight"]:
            grads["weight"] = column_sum(dy * xhat)
        if needed["bias"]:
            grads["bias"] = column_sum(dy).to(call.bias_dtype)
        g = dy if call.weight is None else dy * gain(call.weight, call.weight_offset, dtype)
        dz = dz + norm.backward(g, z, xhat, stats)
    elif needed["weight"] or needed["bias"]:
        zero = dz.new_zeros(dz.shape[-1:])
        grads["weight"], grads["bias"] = zero, zero.to(call.bias_dtype)
    if needed["residual"]:
        grads["residual"] = (call.residual_scale * dz).to(call.residual_dtype)
    branch_backward(call, dz, grads)
    for name in ("weight", "branch_bias", "branch_scale", "row_scale"):
        operand = getattr(call, name)
        grad = grads[name]
        grads[name] = grad.to(operand.dtype) if grad is not None and needed[name] else None
    if not needed["bias"]:
        grads["bias"] = None
    return grads


def branch_backward(call: Gradient, dz: Tensor, grads: dict[str, Tensor | None]) -> None:
    """The gradients on the branch's side of the sum. With u = mask * (x + branch_bias):

    dx = row_scale * branch_scale * mask * dz;  dbranch_bias = sum of dx over rows;
    dbranch_scale = sum of row_scale * u * dz over rows;  drow_scale = sum of branch_scale * u * dz over columns.
    """
    needed = call.needed
    kept = keep(call, dz) if call.dropout_p > 0 else None
    row = None if call.row_scale is None else call.row_scale.to(dz.dtype).unsqueeze(-1)
    scale = None if call.branch_scale is None else call.branch_scale.to(dz.dtype)
    if needed["branch_scale"] or needed["row_scale"]:
        assert call.x is not None, "the gradient of a scale needs x"
        u = call.x.to(dz.dtype)
        u = u if call.branch_bias is None else u + call.branch_bias.to(dz.dtype)
        u = product(u, kept)
        if needed["branch_scale"]:
            assert scale is not None
            total = column_sum(product(u * dz, row))
            grads["branch_scale"] = total if scale.dim() else total.sum()
        if needed["row_scale"]:
            grads["row_scale"] = product(u * dz, scale).sum(-1)
    if needed["x"] or needed["branch_bias"]:
        dx = product(product(product(dz, row), scale), kept)
        if needed["x"]:
            grads["x"] = dx.to(call.x_dtype)
        if needed["branch_bias"]:
            grads["branch_bias"] = column_sum(dx)


def gain(weight: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) if offset == 0 else weight.to(dtype) + offset


def keep(call: Call | Gradient, like: Tensor) -> Tensor:
    """Dropout's multiplier: 0 or 1/(1-p). A product, so that 0 * NaN stays NaN, as in torch."""
    assert call.seed is not None
    columns = like.shape[-1]
    rows = math.prod(like.shape[:-1])  # numel() would fix an exported size
    # Compiled as one operator: its two hundred in plain torch take Inductor minutes.
    mask = torch.ops.addnorm.mask if torch.compiler.is_compiling() else rng.mask
    kept = mask(call.seed, rows, columns, dropout_threshold(call.dropout_p))
    return (kept.to(like.dtype) * (1 / (1 - call.dropout_p))).reshape(like.shape)


def product(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a * b


def column_sum(t: Tensor) -> Tensor:
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1]).sum(0)  # -1 would be ambiguous where there are no columns
