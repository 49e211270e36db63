"""An encoder that learns to fill in masked characters of Lewis Carroll.

python examples/encoder.py --placement pre
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
MASKED = 0.15  # of the characters


class Encoder(nn.Module):
    def __init__(self, symbols: int, placement: str) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols + 1, D), nn.Embedding(LENGTH, D)  # one for the mask
        layers = [f for _ in range(LAYERS) for f in (Attention(D, HEADS, causal=False), FeedForward(D, 4 * D))]
        self.stack = addnorm.Stack(layers, D, placement=placement, dropout=0.1)
        self.head = nn.Linear(D, symbols)

    def embed(self, codes: Tensor) -> Tensor:
        return self.symbols(codes) + self.places.weight[: codes.shape[-1]]

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.stack(self.embed(codes)))


def loss(model: nn.Module, codes: Tensor) -> Tensor:
    """How surprising each masked character is among those around it."""
    masked = torch.rand(codes.shape) < MASKED
    symbols = model.get_submodule("head").out_features
    return F.cross_entropy(model(codes.masked_fill(masked, symbols))[masked], codes[masked])


def main() -> None:
    args = flags(__doc__, steps=1000)
    torch.manual_seed(0)
    train, check, alphabet = load()
    model = Encoder(len(alphabet), args.placement)
    model.stack.initialise(model.embed(windows(train, BATCH, LENGTH)))
    print(model.stack.describe())
    fit(model, loss, train, check, args.steps)
    model.eval()
    (line,) = windows(check, 1, LENGTH)
    masked = torch.rand(LENGTH) < MASKED
    guess = torch.where(masked, model(line.masked_fill(masked, len(alphabet))[None])[0].argmax(-1), line)
    for what, codes in (("text", line), ("filled in", guess)):
        print(f"{what}: {''.join(alphabet[c] for c in codes)!r}")


if __name__ == "__main__":
    main()
