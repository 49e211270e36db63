"""pRMSNorm (Zhang & Sennrich, 2019, arXiv:1910.07467, section 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Norm

PART = 0.0625  # of the columns, the first ones: the paper's p


class PartialRMS(Norm):
    """xhat = z / sqrt(mean(z_k^2) + eps), the mean over the first ceil(d / 16) columns k alone. Statistics: (1/s)."""

    name = "prms"
    stats_per_row = 1
    bias_by_default = False

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        first = z[..., : part(z)]
        return torch.rsqrt((first * first).mean(-1, keepdim=True) + eps)

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return z * stats

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        columns = part(xhat)
        through = (g * xhat).sum(-1, keepdim=True) / max(columns, 1)
        seen = torch.arange(xhat.shape[-1], device=xhat.device) < columns
        return (g - seen * xhat * through) * stats


def part(z: Tensor) -> int:
    """How many columns the statistics see."""
    return math.ceil(PART * z.shape[-1])
