"""The tensors of a case."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import Case


@dataclass(frozen=True)
class Inputs:
    """Arguments, incoming gradients, and a place for y; `leaves` are those that want a gradient."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor | None
    dy: Tensor | None
    ds: Tensor | None
    out: Tensor | None

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"x": self.x, "residual": self.residual, "weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def incoming(self) -> list[Tensor]:
        """The gradients that arrive at the results."""
        return [grad for grad in (self.dy, self.ds) if grad is not None]


def make(case: Case, seed: int = 0) -> Inputs:
    """Normal activations, parameters as a trained model has them: gamma near 1, beta near 0.

    RMSNorm has no beta, as everywhere.
    """
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0, leaf: bool = False) -> Tensor:
        values = torch.randn(shape, generator=generator, device=case.device).mul_(scale).add_(mean).to(case.torch_dtype)
        return values.requires_grad_(leaf and case.trains)

    rows, d = case.rows, case.d
    return Inputs(
        x=normal(rows, d, leaf=True),
        residual=normal(rows, d, leaf=True),
        weight=normal(d, scale=0.1, mean=1.0, leaf=True),
        bias=normal(d, scale=0.1, leaf=True) if case.norm == "layer" else None,
        dy=normal(rows, d) if case.trains else None,
        ds=normal(rows, d) if case.trains and case.stream else None,
        out=torch.empty(rows, d, dtype=case.torch_dtype, device=case.device) if case.out else None,
    )
