"""RMSNorm (Zhang & Sennrich, 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Norm


class RMS(Norm):
    """xhat = z / sqrt(mean(z^2) + eps). Statistics: (1/s)."""

    name = "rms"
    stats_per_row = 1
    bias_by_default = False

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        return torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return z * stats

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        return (g - xhat * (g * xhat).mean(-1, keepdim=True)) * stats
