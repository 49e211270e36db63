"""Tiny models with Add & Norm sites, into which a fault can be put."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTH = 16


class Site(nn.Module):
    """One sublayer: pre-norm takes the normed stream and gives ``(y, z)``; post-norm gives y alone."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.scale = scale

    def branch(self, y: Tensor) -> Tensor:
        return self.scale * F.relu(self.linear(y))


class Pre(nn.Module):
    """``z = z + f(y); y = norm(z)``."""

    def __init__(self, sites: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.sites = nn.ModuleList(Site(scale) for _ in range(sites))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        z, y = x, x
        for site in self.sites:
            assert isinstance(site, Site)
            z = z + self.mix(site.branch(y), attention_mask)
            y = site.norm(z)
        return y

    def mix(self, branch: Tensor, mask: Tensor | None) -> Tensor:
        """What sublayers do between tokens: here nothing."""
        return branch


class Leaking(Pre):
    """Takes a mean over all tokens, padding too."""

    def mix(self, branch: Tensor, mask: Tensor | None) -> Tensor:
        return branch + branch.mean(1, keepdim=True)


class Masked(Pre):
    """The same over real tokens alone."""

    def mix(self, branch: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        real = mask.unsqueeze(-1).to(branch.dtype)
        return branch + (branch * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)


class Post(Pre):
    """``y = norm(y + f(y))``."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        y = x
        for site in self.sites:
            assert isinstance(site, Site)
            y = site.norm(y + site.branch(y))
        return y
