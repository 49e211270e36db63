"""ScaleNorm (Nguyen & Salazar, 2019, arXiv:1910.05895)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Norm


class Scale(Norm):
    """xhat = z / sqrt(sum(z^2) + eps): rows of length 1. Statistics: (1/s).

    The paper's single gain g, initialised to sqrt(d), is ``weight=g.expand(d)``, whose gradients autograd sums.
    """

    name = "scale"
    stats_per_row = 1
    bias_by_default = False
    one_gain = True

    def initial_gain(self, width: int) -> float:
        return width**0.5

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        return torch.rsqrt((z * z).sum(-1, keepdim=True) + eps)

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return z * stats

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        return (g - xhat * (g * xhat).sum(-1, keepdim=True)) * stats
