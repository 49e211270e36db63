"""One Add & Norm call, described once: what it computes, and the checks of its tensors, each with its error text.

How a call is carried out is not known here. What else is checked: plain arguments (checks.py), operators called by hand
(checked.py), and where results are written (outputs.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .checks import DTYPES, check_dtype, check_number, check_probability, check_switch, names, type_name

OPERANDS = ("x", "residual", "weight", "bias", "branch_bias", "branch_scale", "row_scale")
SEED_LIMIT = 2**63

# Of its own checks, which are no part of a trace, the tracer is not to warn, as torch has it for its own modules.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"addnorm\.")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A forward call. The fields are arguments of ``addnorm::forward``, in its order.

    ``dropout_p`` is 0 where dropout is off; ``seed`` is then None. ``row_scale`` has the shape
    ``x.shape[:-1]`` and ``branch_scale`` is a tensor, 0-d or ``(d,)``.
    """

    x: Tensor
    residual: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    norm: Any = "layer"  # a name, or a policy object (norms/base.py)
    eps: float = 1e-5
    dropout_p: float = 0.0
    seed: Tensor | None = None
    branch_bias: Tensor | None = None
    branch_scale: Tensor | None = None
    row_scale: Tensor | None = None
    residual_scale: float = 1.0
    weight_offset: float = 0.0
    out_dtype: torch.dtype
    stream_dtype: torch.dtype

    @property
    def main(self) -> Tensor:
        """The tensor whose device and shape the call has."""
        return self.x

    @property
    def operands(self) -> dict[str, Tensor | None]:
        """The tensors that differentiate, by argument name."""
        return {name: getattr(self, name) for name in OPERANDS}

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the arithmetic, the sums and the statistics."""
        for t in self.operands.values():
            if t is not None and t.dtype == torch.float64:
                return torch.float64
        return torch.float32

    @property
    def stream_is_x(self) -> bool:
        """Whether z equals x bit for bit, so that x itself can be kept for the backward."""
        return self.residual is None and self.branch_is_plain and self.stream_dtype == self.x.dtype

    @property
    def branch_is_plain(self) -> bool:
        """Whether z = residual_scale * residual + x: no bias, scale or dropout on the branch."""
        extras = (self.branch_bias, self.branch_scale, self.row_scale)
        return self.dropout_p == 0 and all(extra is None for extra in extras)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """A backward call. The fields are arguments of ``addnorm::backward``, in its order.

    ``dy`` and ``ds`` are the gradients of y and of the stream; None means zero. ``z`` is the stream as
    stored, ``x`` is there where the gradient of a scale is needed. ``needs`` says which of `OPERANDS`
    want a gradient.
    """

    dy: Tensor | None
    ds: Tensor | None
    z: Tensor
    stats: Tensor
    needs: Sequence[bool]
    weight: Tensor | None = None
    norm: str = "layer"
    eps: float = 1e-5
    dropout_p: float = 0.0
    seed: Tensor | None = None
    branch_bias: Tensor | None = None
    branch_scale: Tensor | None = None
    row_scale: Tensor | None = None
    residual_scale: float = 1.0
    weight_offset: float = 0.0
    x: Tensor | None = None
    x_dtype: torch.dtype
    residual_dtype: torch.dtype
    bias_dtype: torch.dtype

    @property
    def main(self) -> Tensor:
        """The tensor whose device and shape the call has."""
        return self.z

    @property
    def needed(self) -> dict[str, bool]:
        return dict(zip(OPERANDS, self.needs, strict=True))

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the arithmetic: the one in which the forward kept its statistics."""
        return self.stats.dtype


CALL_FIELDS = tuple(field.name for field in fields(Call))
GRADIENT_FIELDS = tuple(field.name for field in fields(Gradient))
# The tensors, in the order in which a plan takes their addresses (backends/base.py).
CALL_TENSORS = (*OPERANDS, "seed")
GRADIENT_TENSORS = ("dy", "ds", "z", "stats", "x", "weight", "branch_bias", "branch_scale", "row_scale", "seed")


def describe(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: Any = "layer",
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
) -> Call:
    """The public arguments, checked, as a `Call`. Draws nothing: `with_seed` does, once all is known to be well."""
    check_tensor("x", x, x)
    if x.dim() == 0:
        raise ValueError("x has no dimension to normalise over: shape (..., d) is needed, got ()")
    width = x.shape[-1:]
    check_tensor("residual", residual, x, shapes=(x.shape,))
    for name, vector in (("weight", weight), ("bias", bias), ("branch_bias", branch_bias)):
        check_tensor(name, vector, x, shapes=(width,))
    if isinstance(branch_scale, Tensor):
        check_tensor("branch_scale", branch_scale, x, shapes=((), width))
    elif branch_scale is not None:
        check_number("branch_scale", branch_scale)
    check_row_scale(row_scale, x)
    check_number("eps", eps, low=0.0)
    check_number("residual_scale", residual_scale)
    check_number("weight_offset", weight_offset)
    check_probability("dropout_p", dropout_p)
    check_switch("training", training)
    if weight_offset != 0 and weight is None:
        raise ValueError(f"weight_offset={weight_offset} is added to weight, but weight is None")
    stored = stored_dtype(x, residual)
    for name, dtype in (("out_dtype", out_dtype), ("stream_dtype", stream_dtype)):
        check_dtype(name, dtype)
    check_seed(seed, x)
    drops = training and dropout_p > 0
    call = Call(
        x=x,
        residual=residual,
        weight=weight,
        bias=bias,
        branch_bias=branch_bias,
        branch_scale=branch_scale if isinstance(branch_scale, Tensor) else None,
        row_scale=row_scale,
        seed=as_tensor(seed, x.device) if drops else None,
        norm=norm,
        eps=float(eps),
        residual_scale=float(residual_scale),
        dropout_p=float(dropout_p) if drops else 0.0,
        weight_offset=float(weight_offset),
        out_dtype=out_dtype or autocast_dtype(x.device) or stored,
        stream_dtype=stream_dtype or stored,
    )
    if row_scale is not None and row_scale.shape != x.shape[:-1]:
        # in the type of the arithmetic: its gradient is a sum over rows, rounded once
        call = replace(call, row_scale=row_scale.to(call.compute_dtype).expand(x.shape[:-1]))
    if branch_scale is None or isinstance(branch_scale, Tensor):
        return call
    factor = torch.full((), branch_scale, dtype=torch.float64, device=x.device)  # it may be infinite in float32
    return replace(call, branch_scale=factor.to(call.compute_dtype))


def stored_dtype(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The dtype of x + residual, which y and the stream have unless another is asked for."""
    return x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast makes of y: float32 on CUDA, where torch's norms are in its float32 list; nothing on the CPU."""
    if device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        return torch.float32
    return None


def as_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    """The seed as a 0-d int64 tensor."""
    if seed is None:
        return None
    if isinstance(seed, Tensor):
        return seed.reshape(())
    return torch.full((), seed, dtype=torch.int64, device=device)


def draw_seed(x: Tensor) -> Tensor:
    """A seed from torch's generator, on x's device."""
    return torch.randint(SEED_LIMIT - 1, (), dtype=torch.int64, device=x.device)


def with_seed(call: Call, draw: Callable[[Tensor], Tensor] = draw_seed) -> Call:
    """The call with a seed that is drawn, if it drops out and has none."""
    if call.dropout_p == 0 or call.seed is not None:
        return call
    return replace(call, seed=draw(call.x))


def dropout_threshold(p: float) -> int:
    """An element is dropped iff its 16-bit lane is below this."""
    return min(round(65536 * p), 65535)


# -- the checks: each names the argument, what came and what is allowed ---------------------------


def check_tensor(name: str, value: Any, x: Tensor, shapes: Sequence[Sequence[int]] | None = None) -> None:
    """A dense floating-point tensor on x's device, of one of the shapes; None passes."""
    if value is None and name != "x":
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type_name(value)}")
    if value.layout != torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise TypeError(f"{name} must be a dense (strided) tensor, got {layout}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be {names(DTYPES)}, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x on {x.device}: all tensors must be on one device")
    if shapes is not None and all(tuple(value.shape) != tuple(shape) for shape in shapes):
        allowed = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name} has shape {tuple(value.shape)}, x {tuple(x.shape)}: {name} must have shape {allowed}")


def check_row_scale(row_scale: Any, x: Tensor) -> None:
    """A tensor that broadcasts to one number per row; None passes."""
    check_tensor("row_scale", row_scale, x)
    if row_scale is None:
        return
    rows = x.shape[:-1]
    fits = row_scale.dim() <= len(rows) and all(
        have in (1, want) for have, want in zip(reversed(row_scale.shape), reversed(rows), strict=False)
    )
    if not fits:
        squeezed = ", which row_scale.squeeze(-1) is" if row_scale.shape == (*rows, 1) else ""
        raise ValueError(
            f"row_scale has shape {tuple(row_scale.shape)}: it must be broadcastable to x.shape[:-1] = {tuple(rows)}"
            + squeezed
        )


def check_seed(seed: Any, x: Tensor) -> None:
    """None, an int of 64 bits, or an int64 tensor with one element on x's device."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(f"seed must be one torch.int64, got {seed.dtype} of shape {tuple(seed.shape)}")
        if seed.device != x.device:
            raise ValueError(f"seed is on {seed.device}, x on {x.device}: all tensors must be on one device")
    elif seed is not None:
        if isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
            raise TypeError(f"seed must be an int, an int64 tensor or None, got {type_name(seed)}")
        if not -SEED_LIMIT <= seed < SEED_LIMIT:
            raise ValueError(f"seed must fit in 64 bits, [-2**63, 2**63), got {seed}")
