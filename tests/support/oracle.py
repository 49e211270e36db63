"""What a call must give, in float64, written apart from the library's reference; how far rounding may take a
kernel from it; and the composite as a user of torch would write it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from addnorm import rng

OPERANDS = ("x", "residual", "weight", "bias", "branch_bias", "branch_scale", "row_scale")
FEW = 4  # units of rounding allowed per term of a sum, where a term's own size is the scale


@dataclass(frozen=True)
class Problem:
    """The arguments of a call, by name, and the gradients that arrive at its two results."""

    arguments: dict[str, Any]
    dy: Tensor | None = None
    ds: Tensor | None = None

    @property
    def x(self) -> Tensor:
        return self.arguments["x"]

    @property
    def norm(self) -> str:
        return self.arguments.get("norm", "layer")

    @property
    def stored_dtype(self) -> torch.dtype:
        residual = self.arguments.get("residual")
        return self.x.dtype if residual is None else torch.promote_types(self.x.dtype, residual.dtype)

    @property
    def out_dtype(self) -> torch.dtype:
        return self.arguments.get("out_dtype") or self.stored_dtype

    @property
    def stream_dtype(self) -> torch.dtype:
        return self.arguments.get("stream_dtype") or self.stored_dtype

    @property
    def compute_dtype(self) -> torch.dtype:
        tensors = [self.arguments.get(name) for name in OPERANDS]
        wide = any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in tensors)
        return torch.float64 if wide else torch.float32

    def dtype_of(self, result: str) -> torch.dtype:
        """The dtype of a result: "y", "stream" or the gradient of an operand."""
        given = {"y": self.out_dtype, "stream": self.stream_dtype}
        return given[result] if result in given else self.arguments[result].dtype


@dataclass(frozen=True)
class Exact:
    """float64 results by name ("y", "stream", operands for their gradients), and the error allowed to each element
    before the result's own rounding."""

    results: dict[str, Tensor] = field(default_factory=dict)
    allowed: dict[str, Tensor] = field(default_factory=dict)


def keep(problem: Problem) -> Tensor | float:
    """Dropout's multiplier, from the published counter scheme, float64."""
    a = problem.arguments
    p = a.get("dropout_p", 0.0)
    if p == 0 or not a.get("training", True):
        return 1.0
    x = problem.x
    threshold = min(round(65536 * p), 65535)
    kept = rng.mask(a["seed"], x.shape[:-1].numel(), x.shape[-1], threshold)
    return kept.reshape(x.shape).double() / (1 - p)


def exact(problem: Problem) -> Exact:
    """Results and allowances of `problem`, by the reference's formulas, every term's size kept beside it."""
    a = {k: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v
         for k, v in problem.arguments.items()}  # fmt: skip
    eps_c = torch.finfo(problem.compute_dtype).eps
    eps_s = torch.finfo(problem.stream_dtype).eps
    centred = 1.0 if problem.norm == "layer" else 0.0
    x, residual_scale = a["x"], a.get("residual_scale", 1.0)
    bias, mask = zero(a.get("branch_bias")), keep(problem)
    scale = 1.0 if a.get("branch_scale") is None else a["branch_scale"]
    row = 1.0 if a.get("row_scale") is None else a["row_scale"].expand(x.shape[:-1]).unsqueeze(-1)
    residual = zero(a.get("residual"))

    u = (x + bias) * mask
    z = residual_scale * residual + row * scale * u
    size_u = (abs(x) + abs(bias)) * mask
    size_z = abs(residual_scale * residual) + abs(row * scale) * size_u
    d = z - centred * mean(z)
    d = d - centred * mean(d)
    r = torch.rsqrt(mean(d * d) + a.get("eps", 1e-5))
    xhat = d * r
    condition = 1 + size_z.amax(-1, keepdim=True) * r if z.shape[-1] else r
    error_xhat = FEW * eps_c * (1 + abs(xhat)) * condition
    gain = a.get("weight_offset", 0.0) + (1.0 if a.get("weight") is None else a["weight"])
    shift = zero(a.get("bias"))

    out = Exact()
    out.results.update(y=gain * xhat + shift, stream=z)
    out.allowed["y"] = abs(gain) * error_xhat + FEW * eps_c * abs(shift * torch.ones_like(z))
    out.allowed["stream"] = FEW * eps_c * size_z
    if problem.dy is None and problem.ds is None:
        return out

    dy = torch.zeros_like(z) if problem.dy is None else problem.dy.double()
    ds = torch.zeros_like(z) if problem.ds is None else problem.ds.double()
    g = gain * dy
    through = (g - centred * mean(g) - xhat * mean(g * xhat)) * r
    dz = through + ds
    size_g = abs(g) + centred * mean(abs(g)) + abs(xhat) * mean(abs(g * xhat))
    error_xhat = error_xhat + eps_s / 2 * abs(z) * r  # the backward sees z as it was stored
    size_xhat = abs(xhat) + error_xhat
    error_dz = r * (
        FEW * eps_c * size_g * condition + error_xhat * mean(abs(g * xhat)) + size_xhat * mean(abs(g) * error_xhat)
    ) + FEW * eps_c * (abs(ds) + abs(dz))

    def column(value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        return column_sum(value), column_sum(error + FEW * eps_c * abs(value))

    branch, through_branch = row * scale * mask, row * u
    gradients = {
        "x": (branch * dz, abs(branch) * error_dz),
        "residual": (residual_scale * dz, abs(residual_scale) * error_dz),
        "weight": column(dy * xhat, abs(dy) * error_xhat),
        "bias": column(dy, 0 * dy),
        "branch_bias": column(branch * dz, abs(branch) * error_dz),
        "branch_scale": column(through_branch * dz, abs(row) * size_u * (error_dz + FEW * eps_c * abs(dz))),
    }
    by_row = [scale * u * dz, abs(scale) * size_u * (error_dz + FEW * eps_c * abs(dz))]
    gradients["row_scale"] = (by_row[0].sum(-1), by_row[1].sum(-1))
    if isinstance(a.get("row_scale"), Tensor):  # rounded per row, then summed to the broadcast shape by autograd
        value, error = gradients["row_scale"]
        gradients["row_scale"] = (value, error + torch.finfo(problem.dtype_of("row_scale")).eps * abs(value))
    for name, (value, error) in gradients.items():
        operand = a.get(name)
        if isinstance(operand, Tensor):
            out.results[name] = value.sum_to_size(operand.shape)
            out.allowed[name] = error.sum_to_size(operand.shape)
    return out


def as_written(problem: Problem) -> dict[str, Tensor]:
    """The same results from torch's own operations, in the problem's own dtypes: what addnorm is measured against."""
    a: dict[str, Any] = {k: v.detach().clone().requires_grad_() if k in OPERANDS and isinstance(v, Tensor) else v
         for k, v in problem.arguments.items()}  # fmt: skip
    x = a["x"]
    h = x if a.get("branch_bias") is None else x + a["branch_bias"].to(x.dtype)
    mask = keep(problem)
    h = h * mask.to(x.dtype) if isinstance(mask, Tensor) else h
    scale, row = a.get("branch_scale"), a.get("row_scale")
    h = h * (scale.to(x.dtype) if isinstance(scale, Tensor) else 1.0 if scale is None else scale)
    h = h if row is None else h * row.to(x.dtype).unsqueeze(-1)
    z = h if a.get("residual") is None else h + a.get("residual_scale", 1.0) * a["residual"]
    weight, bias = (None if a.get(name) is None else a[name].to(z.dtype) for name in ("weight", "bias"))
    if weight is not None and a.get("weight_offset"):
        weight = weight + a["weight_offset"]
    shape, eps = (x.shape[-1],), a.get("eps", 1e-5)
    if problem.norm == "layer":
        y = functional.layer_norm(z, shape, weight, bias, eps)
    else:
        y = functional.rms_norm(z, shape, weight, eps)
        y = y if bias is None else y + bias
    y, z = y.to(problem.out_dtype), z.to(problem.stream_dtype)
    pairs = [(t, g) for t, g in ((y, problem.dy), (z, problem.ds)) if g is not None]
    if pairs:
        torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
    leaves = {name: t for name, t in a.items() if isinstance(t, Tensor) and name in OPERANDS}
    grads = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items()}
    return {"y": y.detach(), "stream": z.detach(), **grads}


def zero(t: Tensor | None) -> Tensor | float:
    return 0.0 if t is None else t


def mean(t: Tensor) -> Tensor:
    return t.mean(-1, keepdim=True)


def column_sum(t: Tensor) -> Tensor:
    return t.reshape(-1, t.shape[-1]).sum(0)
