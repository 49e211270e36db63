"""Norms, sublayers and blocks as models write them out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

EPS = 1e-6


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))


class Llama(Norm):
    """Upcast; the weight after the cast back."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32 if x.dtype != torch.float64 else x.dtype)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
        return self.weight * h.to(x.dtype)


class GptOss(Norm):
    """Upcast; the weight before the cast back."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32 if x.dtype != torch.float64 else x.dtype)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
        return (self.weight * h).to(x.dtype)


class Gemma(Norm):
    """The weight around zero."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32 if x.dtype != torch.float64 else x.dtype)
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)
        return (h * (1.0 + self.weight.to(h.dtype))).type_as(x)


class Power(Norm):
    """A power for the root, a product for the square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.pow((x * x).mean(dim=2, keepdim=True) + EPS, -0.5) * self.weight


class Divided(Norm):
    """RMSNorm by division."""

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x.square(), -1, keepdim=True) + EPS) * self.weight


class Cohere(Norm):
    """LayerNorm without bias, the variance written out."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32 if x.dtype != torch.float64 else x.dtype)
        mean = h.mean(-1, keepdim=True)
        variance = (h - mean).pow(2).mean(-1, keepdim=True)
        return (self.weight.to(h.dtype) * ((h - mean) * torch.rsqrt(variance + EPS))).to(x.dtype)


class Deberta(Norm):
    """LayerNorm by division, the weight and the bias after the cast."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.float32 if x.dtype != torch.float64 else x.dtype)
        mean = h.mean(-1, keepdim=True)
        variance = (h - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * ((h - mean) / torch.sqrt(variance + EPS)).to(x.dtype) + self.bias


class Textbook(Norm):
    """LayerNorm with torch's variance, the weight before the division."""

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(-1, unbiased=False, keepdim=True)
        return self.weight * (x - x.mean(-1, keepdim=True)) / (variance + EPS).sqrt() + self.bias


class Upcast(Norm):
    """The function, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.float32 if x.dtype != torch.float64 else x.dtype
        return F.layer_norm(x.to(wide), x.shape[-1:], None, None, EPS).to(x.dtype) * self.weight


class Nemotron(Norm):
    """The function, its weight around zero."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight + 1.0, self.bias, EPS)


class Fairseq(Norm):
    """The function and its parameters in float32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.float32 if x.dtype != torch.float64 else x.dtype
        return F.layer_norm(x.to(wide), x.shape[-1:], self.weight.to(wide), self.bias.to(wide), EPS).type_as(x)


NORMS = (Llama, GptOss, Gemma, Power, Divided, Cohere, Deberta, Textbook, Upcast, Nemotron, Fairseq)


class Sublayer(nn.Module):
    """Post-norm with DeepNorm's factor on the residual."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x * 1.5 + self.linear(x))


class PostNorm(nn.Module):
    """Post-norm with LayerNorm as a function."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.drop, self.norm = nn.Linear(width, width), nn.Dropout(0.1), Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.dropout(self.linear(torch.tanh(x)), self.drop.p, self.training)
        return F.layer_norm(x + branch, x.shape[-1:], self.norm.weight, self.norm.bias)


class LayerScale(nn.Module):
    """A scale per feature (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016, arXiv:1603.09382), as image models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.4

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        mask.div_(keep)
        return x * mask


class TimmBlock(nn.Module):
    """Pre-norm with LayerScale and stochastic depth."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mlp = (
            nn.Linear(width, width),
            nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)),
        )
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.drop_path1, self.drop_path2 = DropPath(), DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.mix(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def stack(block: type[nn.Module], layers: int, width: int) -> nn.Module:
    return nn.Sequential(*(block(width) for _ in range(layers)))
