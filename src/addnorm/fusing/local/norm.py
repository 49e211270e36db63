"""A norm by itself: torch's, and those that models write, as far as numbers tell that they are the same."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...functional import add_norm
from ...plain import wants_grad
from ..base import NORMS
from ..measured import torch_is_faster
from .base import Local, Part, is_plain

TORCHS = (nn.LayerNorm, nn.RMSNorm)
EPS = ("eps", "variance_epsilon", "epsilon")  # the names that models give it


class Norm(Local):
    """``norm(x)`` over the last dimension."""

    def __init__(self, module: nn.Module, kind: str, offset: float = 0.0) -> None:
        super().__init__(module)
        self.kind = kind
        self.options: dict[str, Any] = {"norm": kind}
        if offset:
            self.options["weight_offset"] = offset

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        if type(module) in TORCHS:
            return len(module.normalized_shape) == 1  # pyright: ignore
        if not type(module).__name__.endswith(NORMS) or eps_name(module) is None:
            return False  # its weight is not read: where that is computed, as by spectral_norm, reading it changes it
        weight = getattr(module, "weight", None)
        one_input = len(inspect.signature(module.forward).parameters) == 1
        return one_input and isinstance(weight, Tensor) and weight.dim() == 1

    @classmethod
    def readings(cls, module: nn.Module) -> list[Local]:
        """Torch's norms are what they are called, of others only numbers tell."""
        if is_plain(module, nn.LayerNorm):
            return [cls(module, "layer")]
        if is_plain(module, nn.RMSNorm):
            return [cls(module, "rms")]
        return [cls(module, kind, offset) for kind in ("rms", "layer") for offset in (0.0, 1.0)]

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        if len(args) + len(kwargs) != 1:
            return "it is called with more than its input"
        module: Any = self.module
        (x,), vectors = (*args, *kwargs.values()), (module.weight, getattr(module, "bias", None))
        if not isinstance(x, Tensor) or not all(fits(vector, x) for vector in vectors):
            return "its weight or bias does not fit its input"
        if type(module) not in TORCHS:
            return "" if eps_name(module) else "its eps is no number"
        if module.normalized_shape != x.shape[-1:]:
            return "it norms over other dimensions than the last"
        if type(module) is not nn.LayerNorm:
            return ""
        return torch_is_faster(x, backward=wants_grad(x, *vectors))

    def probe(self, x: Tensor) -> Tensor:
        """Rows that have a mean and are so small that it matters where eps is added."""
        return (self.eps(x) ** 0.5 * (3 + torch.linspace(-1, 1, x.shape[-1]))).to(x).expand_as(x)

    def parts(self) -> tuple[Part, ...]:
        return (Part("", self.kind),)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        (x,), module = (*args, *kwargs.values()), self.module
        return add_norm(x, None, module.weight, getattr(module, "bias", None), eps=self.eps(x), **self.options)  # pyright: ignore

    def eps(self, x: Tensor) -> float:
        name = eps_name(self.module)
        if name is None:  # torch's RMSNorm has its own default, by the type of its arithmetic
            return torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
        return getattr(self.module, name)


def fits(vector: Any, x: Tensor) -> bool:
    return vector is None or (isinstance(vector, Tensor) and vector.shape == x.shape[-1:])


def eps_name(module: nn.Module) -> str | None:
    return next((name for name in EPS if isinstance(getattr(module, name, None), (int, float))), None)
