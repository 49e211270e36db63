"""Dynamic Tanh (Zhu et al. 2025, Transformers without Normalization, arXiv:2503.10622)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Norm, own_number


class DyT(Norm):
    """xhat = tanh(alpha z), alpha one learned number: it bounds what a norm would scale. No statistics; eps is unused.

    Args:
        alpha: A number, or a tensor of shape ``()`` or ``(1,)``, which differentiates; the paper's 0.5 by default.

    >>> from addnorm import add_norm
    >>> add_norm(torch.tensor([[0.0, 2.0]]), norm=DyT(alpha=torch.tensor(1.0)))
    tensor([[0.0000, 0.9640]])
    """

    name = "dyt"
    stats_per_row = 0
    bias_by_default = True

    def __init__(self, alpha: float | Tensor = 0.5) -> None:
        self.alpha = own_number("alpha", alpha)

    @property
    def own(self) -> Mapping[str, float | Tensor]:
        return {"alpha": self.alpha}

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        return z.new_empty((*z.shape[:-1], 0))

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return torch.tanh(self.alpha * z)

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        return self.alpha * (1 - xhat * xhat) * g
