"""LayerNorm (Ba, Kiros & Hinton, 2016, arXiv:1607.06450)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Norm


class Layer(Norm):
    """xhat = (z - mean(z)) / sqrt(mean((z - mean(z))^2) + eps).

    Corrected two-pass: d = z - mu is exact for z near mu, and e = mean(d) is what rounding took from the
    mean. Subtracting e, which a plain two-pass does not, keeps xhat within a few units in the last place
    at any mean. Statistics: (mu, e, 1/s); the mean is mu + e, unevaluated.
    """

    name = "layer"
    stats_per_row = 3
    bias_by_default = True

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        mu = z.mean(-1, keepdim=True)
        d = z - mu
        e = d.mean(-1, keepdim=True)
        v = ((d * d).mean(-1, keepdim=True) - e * e).clamp(min=0)  # unclamped, rounding can make it negative
        return torch.cat((mu, e, torch.rsqrt(v + eps)), dim=-1)

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        mu, e, r = stats.split(1, dim=-1)
        return ((z - mu) - e) * r

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        r = stats[..., 2:]
        return (g - g.mean(-1, keepdim=True) - xhat * (g * xhat).mean(-1, keepdim=True)) * r
