"""Dynamic erf (Chen et al. 2025, Stronger Normalization-Free Transformers, arXiv:2512.10938)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .base import Norm, own_number


class Derf(Norm):
    """xhat = erf(alpha z + shift), two learned numbers. No statistics; eps is unused.

    Args:
        alpha, shift: Numbers, or tensors of shape ``()`` or ``(1,)``, which differentiate; the paper's 0.5 and 0 by
            default.
    """

    name = "derf"
    stats_per_row = 0
    bias_by_default = True

    def __init__(self, alpha: float | Tensor = 0.5, shift: float | Tensor = 0.0) -> None:
        self.alpha, self.shift = own_number("alpha", alpha), own_number("shift", shift)

    @property
    def own(self) -> Mapping[str, float | Tensor]:
        return {"alpha": self.alpha, "shift": self.shift}

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        return z.new_empty((*z.shape[:-1], 0))

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return torch.erf(self.alpha * z + self.shift)

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        u = self.alpha * z + self.shift
        return self.alpha * (2 / math.sqrt(math.pi)) * torch.exp(-u * u) * g
