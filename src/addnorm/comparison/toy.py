"""The toy task: a deep, narrow transformer has to hand on its input, token by token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..placements import Slot
from ..stack import Stack

WIDTH, TOKENS, SYMBOLS, BATCH = 32, 16, 16, 16
LAYERS, STEPS, RATE = 18, 100, 1e-3  # deep enough that post-norm stays at chance
CHANCE = torch.log(torch.tensor(float(SYMBOLS))).item()  # the loss of who guesses


class Attention(nn.Module):
    """Self-attention with one head, and a slot wherever a placement may want a norm."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))
        self.q_norm, self.k_norm, self.v_norm, self.inner_norm = (Slot(d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_norm(self.v_proj(x))
        return self.out_proj(self.inner_norm(F.scaled_dot_product_attention(q, k, v)))


class FeedForward(nn.Module):
    """W_2 relu(W_1 x), four times as wide inside."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc1, self.inner_norm, self.fc2 = nn.Linear(d, 4 * d), Slot(4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.inner_norm(self.fc1(x).relu()))


class Toy(nn.Module):
    """Symbols in, symbols out, through a `Stack`."""

    def __init__(self, placement: str, layers: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(SYMBOLS, WIDTH), nn.Linear(WIDTH, SYMBOLS)
        sublayers = [sublayer for _ in range(layers) for sublayer in (Attention(WIDTH), FeedForward(WIDTH))]
        for matrix in (p for sublayer in sublayers for p in sublayer.parameters() if p.dim() == 2):
            nn.init.xavier_normal_(matrix)
        self.stack = Stack(sublayers, WIDTH, placement=placement)
        self.stack.initialise(self.embedding(symbols()))

    def loss(self, seen: Tensor) -> Tensor:
        return F.cross_entropy(self.head(self.stack(self.embedding(seen))).flatten(0, 1), seen.flatten())


def symbols() -> Tensor:
    return torch.randint(SYMBOLS, (BATCH, TOKENS))


def final_loss(placement: str, *, layers: int, seed: int, steps: int) -> float:
    """The mean loss of the last tenth of the steps, Adam with a constant rate and no warm-up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Toy(placement, layers)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        losses = []
        for _ in range(steps):
            loss = model.loss(symbols())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
