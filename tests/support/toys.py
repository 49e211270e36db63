"""The small models of the experiments, of Xiong et al. 2020 (arXiv:2002.04745): uniform attention and a square
feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn

D, TOKENS = 128, 16


class UniformAttention(nn.Module):
    """Every token sees the mean of all, through a matrix that keeps the size of what it maps."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.out_proj = nn.Linear(d, d, bias=False)
        nn.init.normal_(self.out_proj.weight, std=d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(x.mean(-2, keepdim=True)).expand(x.shape)


class SquareFFN(nn.Module):
    """W_2 relu(W_1 x), d to d: half of the size of x on average."""

    def __init__(self, d: int = D) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        for linear in (self.fc1, self.fc2):
            nn.init.normal_(linear.weight, std=d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


def layers(count: int, d: int = D) -> list[nn.Module]:
    return [sublayer for _ in range(count) for sublayer in (UniformAttention(d), SquareFFN(d))]


def size(x: Tensor) -> float:
    """|x|^2 / d, the mean over the tokens."""
    return x.square().mean().item()
