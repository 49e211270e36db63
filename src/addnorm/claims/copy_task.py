"""A copy task for deep transformers of every placement, several seeds of each trained side by side.

Each position has to name the token half a sequence away, which attention alone can fetch. Every placement gets the same
initial weights and the same data. The models are a dimension of every tensor, so that they share the operations and
nothing else: own weights, own Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..functional import add_norm, add_norm_stream
from ..placements.deepnorm import constants
from .base import generator

RUNS, BATCH, LENGTH, WIDTH, INNER, VOCABULARY, STEPS, RATE = 5, 8, 4, 32, 64, 8, 80, 3e-3
CHANCE = math.log(VOCABULARY)
Combine = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # branch, stream, layers -> next input, next stream


def post(f: Tensor, x: Tensor, _: int) -> tuple[Tensor, Tensor]:
    y = add_norm(f, x)
    return y, y


def pre(f: Tensor, x: Tensor, _: int) -> tuple[Tensor, Tensor]:
    return add_norm_stream(f, x)


def deepnorm(f: Tensor, x: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    y = add_norm(f, x, residual_scale=constants(layers)[0])
    return y, y


def skip_only(f: Tensor, x: Tensor, _: int) -> tuple[Tensor, Tensor]:
    z = x + f
    return z, z


def norm_only(f: Tensor, _: Tensor, __: int) -> tuple[Tensor, Tensor]:
    y = add_norm(f)
    return y, y


PLACEMENTS: dict[str, Combine] = {
    "Post-LN": post, "Pre-LN": pre, "DeepNorm": deepnorm, "skip only": skip_only, "norm only": norm_only,
}  # fmt: skip


class Layer(NamedTuple):
    """A layer of all models: each weight is (models, in, out)."""

    query_key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor

    def attention(self, x: Tensor) -> Tensor:
        """On (models, tokens, width), as `ffn`."""
        query, key = (x @ self.query_key).view(-1, LENGTH, 2 * WIDTH).chunk(2, -1)
        mixed = F.scaled_dot_product_attention(query, key, (x @ self.value).view(-1, LENGTH, WIDTH))
        return mixed.view(x.shape) @ self.out

    def ffn(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.up) @ self.down


class Weights(NamedTuple):
    """All weights of all models."""

    embedding: Tensor
    position: Tensor
    head: Tensor
    layers: tuple[Layer, ...]


def initial(layers: int, random: torch.Generator) -> Weights:
    """N(0, 1 / fan-in), the same for all placements but for DeepNorm's gain on all but queries and keys."""
    gains = torch.tensor([constants(layers)[1] if name == "DeepNorm" else 1.0 for name in PLACEMENTS]).view(-1, 1, 1, 1)

    def draw(rows: int, columns: int, fan_in: int, scale: Tensor | float = 1.0) -> Tensor:
        drawn = torch.randn(RUNS, rows, columns, generator=random) / math.sqrt(fan_in)
        return (scale * drawn.expand(len(PLACEMENTS), -1, -1, -1)).flatten(0, 1).requires_grad_()

    def layer() -> Layer:
        return Layer(draw(WIDTH, 2 * WIDTH, WIDTH), *(draw(rows, columns, rows, gains) for rows, columns in (
            (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH))))  # fmt: skip

    return Weights(
        draw(VOCABULARY, WIDTH, 1), draw(LENGTH, WIDTH, 1), draw(WIDTH, VOCABULARY, WIDTH),
        tuple(layer() for _ in range(layers)),
    )  # fmt: skip


def logits(weights: Weights, tokens: Tensor) -> Tensor:
    """Of tokens (models, batch, length). The norms at both ends keep the loss of the skips alone from exploding; where
    a placement norms there itself, they do it once more, which changes nothing."""
    model = torch.arange(len(tokens)).view(-1, 1, 1)
    x = add_norm(weights.embedding[model, tokens] + weights.position.unsqueeze(1)).flatten(1, 2)
    streams = list(x.chunk(len(PLACEMENTS)))
    for layer in weights.layers:
        for sublayer in (layer.attention, layer.ffn):
            branches = sublayer(x).chunk(len(PLACEMENTS))
            combined = [
                combine(branch, stream, len(weights.layers))
                for combine, branch, stream in zip(PLACEMENTS.values(), branches, streams, strict=True)
            ]
            x, streams = torch.cat([y for y, _ in combined]), [stream for _, stream in combined]
    return add_norm(x) @ weights.head


def train(layers: int, seed: int) -> dict[str, Tensor]:
    """The loss of each placement at each step, (steps + 1, runs), each time on new data."""
    random = generator(seed)
    weights = initial(layers, random)
    flat = [*weights[:3], *(weight for layer in weights.layers for weight in layer)]
    optimiser = torch.optim.Adam(flat, RATE, fused=True)
    losses = []
    for _ in range(STEPS + 1):
        tokens = torch.randint(VOCABULARY, (RUNS, BATCH, LENGTH), generator=random).repeat(len(PLACEMENTS), 1, 1)
        wanted = tokens.roll(LENGTH // 2, -1).flatten()
        loss = F.cross_entropy(logits(weights, tokens).flatten(0, 1), wanted, reduction="none").view(len(tokens), -1)
        losses.append(loss.detach().mean(1))
        optimiser.zero_grad()
        loss.mean(1).sum().backward()
        optimiser.step()
    return dict(zip(PLACEMENTS, torch.stack(losses).chunk(len(PLACEMENTS), 1), strict=True))


@cache
def learning(layers: int, seed: int) -> dict[str, Tensor]:
    """The smoothed losses; two claims ask for the same ones."""
    return {name: smooth(losses) for name, losses in train(layers, seed).items()}


def smooth(losses: Tensor, window: int = 10) -> Tensor:
    """The running mean over steps: a single batch's loss is noisy."""
    return losses.unfold(0, window, 1).mean(-1)
