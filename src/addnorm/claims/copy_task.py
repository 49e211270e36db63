"""A copy task for deep transformers of every placement, several seeds trained side by side.

Each position has to name the token half a sequence away, which attention alone can fetch. The seeds are a dimension of
every tensor, so that they share the operations and nothing else: own weights, own data, own Adam.
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
from .base import generator

RUNS, BATCH, LENGTH, WIDTH, VOCABULARY, STEPS, RATE = 5, 16, 8, 32, 16, 200, 1e-3
TOKENS = BATCH * LENGTH
CHANCE = math.log(VOCABULARY)
Sublayer = Callable[[Tensor], Tensor]


class Weights(NamedTuple):
    """All weights of all runs; those of the layers are (layers, runs, in, out)."""

    embedding: Tensor
    position: Tensor
    query_key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor
    head: Tensor


def initial(layers: int, gain: float, random: torch.Generator) -> Weights:
    """N(0, 1 / fan-in), with DeepNorm's gain on all but queries and keys."""

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=random) * scale).requires_grad_()

    def matrix(rows: int, columns: int, scale: float = gain) -> Tensor:
        return draw(layers, RUNS, rows, columns, scale=scale / math.sqrt(rows))

    return Weights(
        draw(RUNS, VOCABULARY, WIDTH), draw(RUNS, 1, LENGTH, WIDTH), matrix(WIDTH, 2 * WIDTH, 1.0),
        matrix(WIDTH, WIDTH), matrix(WIDTH, WIDTH), matrix(WIDTH, 4 * WIDTH), matrix(4 * WIDTH, WIDTH),
        draw(RUNS, WIDTH, VOCABULARY, scale=1 / math.sqrt(WIDTH)),
    )  # fmt: skip


def sublayers(weights: Weights) -> list[Sublayer]:
    """Attention and FFN of each layer, on (runs, tokens, width)."""
    stack: list[Sublayer] = []
    layers = zip(*(w.unbind() for w in (weights.query_key, weights.value, weights.out, weights.up, weights.down)),
                 strict=True)  # fmt: skip
    for query_key, value, out, up, down in layers:

        def attention(x: Tensor, query_key: Tensor = query_key, value: Tensor = value, out: Tensor = out) -> Tensor:
            query, key = (x @ query_key).view(RUNS * BATCH, LENGTH, 2 * WIDTH).chunk(2, -1)
            mixed = F.scaled_dot_product_attention(query, key, (x @ value).view(RUNS * BATCH, LENGTH, WIDTH))
            return mixed.view(RUNS, TOKENS, WIDTH) @ out

        def ffn(x: Tensor, up: Tensor = up, down: Tensor = down) -> Tensor:
            return F.relu(x @ up) @ down

        stack += [attention, ffn]
    return stack


def post(x: Tensor, stack: list[Sublayer]) -> Tensor:
    for f in stack:
        x = add_norm(f(x), x)
    return x


def deepnorm(x: Tensor, stack: list[Sublayer]) -> Tensor:
    for f in stack:
        x = add_norm(f(x), x, residual_scale=alpha(len(stack) // 2))
    return x


def pre(x: Tensor, stack: list[Sublayer]) -> Tensor:
    y = add_norm(x)
    for f in stack:
        y, x = add_norm_stream(f(y), x)
    return y


def skip_only(x: Tensor, stack: list[Sublayer]) -> Tensor:
    """No norm but a final one, as Pre-LN has, without which the loss itself explodes."""
    for f in stack:
        x = x + f(x)
    return add_norm(x)


def norm_only(x: Tensor, stack: list[Sublayer]) -> Tensor:
    for f in stack:
        x = add_norm(f(x))
    return x


def alpha(layers: int) -> float:
    """DeepNorm's residual scale for one stack (Wang et al. 2022, arXiv:2203.00555)."""
    return (2 * layers) ** 0.25


def beta(layers: int) -> float:
    """DeepNorm's initialisation gain."""
    return (8 * layers) ** -0.25


PLACEMENTS: dict[str, Callable[[Tensor, list[Sublayer]], Tensor]] = {
    "Post-LN": post, "Pre-LN": pre, "DeepNorm": deepnorm, "skip only": skip_only, "norm only": norm_only,
}  # fmt: skip


def train(placement: str, layers: int, seed: int) -> Tensor:
    """The loss at each step, (steps + 1, runs), each time on new data."""
    random = generator(seed)
    weights = initial(layers, beta(layers) if placement == "DeepNorm" else 1.0, random)
    optimiser = torch.optim.Adam(weights, RATE)
    run = torch.arange(RUNS).view(-1, 1, 1)
    losses = []
    for _ in range(STEPS + 1):
        tokens = torch.randint(VOCABULARY, (RUNS, BATCH, LENGTH), generator=random)
        x = (weights.embedding[run, tokens] + weights.position).view(RUNS, TOKENS, WIDTH)
        logits = PLACEMENTS[placement](x, sublayers(weights)) @ weights.head
        wanted = tokens.roll(LENGTH // 2, -1).flatten()
        loss = F.cross_entropy(logits.flatten(0, 1), wanted, reduction="none").view(RUNS, -1).mean(1)
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    return torch.stack(losses)


@cache
def learning(placement: str, layers: int, seed: int) -> Tensor:
    """The smoothed loss; two claims ask for the same ones."""
    return smooth(train(placement, layers, seed))


def smooth(losses: Tensor, window: int = 10) -> Tensor:
    """The running mean over steps: a single batch's loss is noisy."""
    return losses.unfold(0, window, 1).mean(-1)
