"""A decoder that learns to write like Lewis Carroll, one character after the other.

python examples/decoder.py --placement pre
"""

from __future__ import annotations

import torch
from sublayers import Attention, FeedForward
from text import load, windows
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from training import BATCH, LENGTH, fit, flags

import addnorm

D, HEADS, LAYERS = 64, 4, 4


class Decoder(nn.Module):
    def __init__(self, symbols: int, placement: str) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, D), nn.Embedding(LENGTH, D)
        layers = [f for _ in range(LAYERS) for f in (Attention(D, HEADS, causal=True), FeedForward(D, 4 * D))]
        self.stack = addnorm.Stack(layers, D, placement=placement, dropout=0.1)
        self.head = nn.Linear(D, symbols)

    def embed(self, codes: Tensor) -> Tensor:
        return self.symbols(codes) + self.places.weight[: codes.shape[-1]]

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.stack(self.embed(codes)))

    @torch.no_grad()
    def write(self, codes: Tensor, length: int) -> Tensor:
        for _ in range(length):
            chances = self(codes[:, -LENGTH:])[:, -1].softmax(-1)
            codes = torch.cat((codes, torch.multinomial(chances, 1)), -1)
        return codes


def loss(model: nn.Module, codes: Tensor) -> Tensor:
    """How surprising each character is after those before it."""
    return F.cross_entropy(model(codes)[:, :-1].flatten(0, 1), codes[:, 1:].flatten())


def main() -> None:
    args = flags(__doc__, steps=300)
    torch.manual_seed(0)
    train, check, alphabet = load()
    model = Decoder(len(alphabet), args.placement)
    model.stack.initialise(model.embed(windows(train, BATCH, LENGTH)))
    print(model.stack.describe())
    fit(model, loss, train, check, args.steps)
    (written,) = model.eval().write(windows(check, 1, 16), 120)
    print("".join(alphabet[code] for code in written))


if __name__ == "__main__":
    main()
