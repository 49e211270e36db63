"""A decoder that learns to write like Lewis Carroll, one character after the other.

python examples/decoder.py --placement pre
"""

from __future__ import annotations

import argparse
import time

import torch
from sublayers import Attention, FeedForward
from text import load, windows
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import addnorm
from addnorm.placements import PLACEMENTS

D, HEADS, LAYERS, LENGTH, BATCH = 64, 4, 4, 64, 16


class Decoder(nn.Module):
    def __init__(self, symbols: int, placement: str) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, D), nn.Embedding(LENGTH, D)
        layers = [f for _ in range(LAYERS) for f in (Attention(D, HEADS, causal=True), FeedForward(D, 4 * D))]
        self.stack = addnorm.Stack(layers, D, placement=placement, dropout=0.1)
        self.head = nn.Linear(D, symbols)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.symbols(codes) + self.places.weight[: codes.shape[-1]]
        return self.head(self.stack(x))


def loss(model: nn.Module, codes: Tensor) -> Tensor:
    """How surprising each character is after those before it."""
    return F.cross_entropy(model(codes)[:, :-1].flatten(0, 1), codes[:, 1:].flatten())


@torch.no_grad()
def write(model: nn.Module, codes: Tensor, length: int) -> Tensor:
    for _ in range(length):
        chances = model(codes[:, -LENGTH:])[:, -1].softmax(-1)
        codes = torch.cat((codes, torch.multinomial(chances, 1)), -1)
    return codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--placement", choices=PLACEMENTS, default="pre")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    torch.manual_seed(0)
    train, check, alphabet = load()
    model = Decoder(len(alphabet), args.placement)
    model.stack.initialise(torch.randn(BATCH, LENGTH, D))
    print(model.stack.describe())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = time.perf_counter()
    for step in range(1, args.steps + 1):
        found = loss(model, windows(train, BATCH, LENGTH))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        if step % 100 == 0 or step == args.steps:
            model.eval()
            with torch.no_grad():
                held_out = loss(model, windows(check, 64, LENGTH)).item()
            model.train()
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {found.item():.2f}, on unseen text {held_out:.2f}, {seconds:.0f} s")
    model.eval()
    written = write(model, windows(check, 1, 16), 120)[0]
    print("".join(alphabet[code] for code in written))


if __name__ == "__main__":
    main()
