"""Attention and feed-forward network with a slot wherever a placement may want a norm."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from addnorm import Slot


class Attention(nn.Module):
    def __init__(self, d: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.q_norm, self.k_norm, self.v_norm = (Slot(d // heads) for _ in range(3))
        self.inner_norm = Slot(d)

    def forward(self, x: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k = self.q_norm(split(self.q_proj(x))), self.k_norm(split(self.k_proj(x)))
        v = self.v_norm(split(self.v_proj(x)))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(self.inner_norm(seen.transpose(1, 2).flatten(-2)))


class FeedForward(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.inner_norm, self.fc2 = nn.Linear(d, hidden), Slot(hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.inner_norm(F.gelu(self.fc1(x))))
