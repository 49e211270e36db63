"""The next character of a text from those before it: a small residual net, several seeds trained side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..functional import add_norm
from .base import generator

RUNS, BATCH, CONTEXT, EMBEDDING, WIDTH, LAYERS, STEPS, RATE = 5, 64, 8, 8, 48, 12, 200, 1e-3
EVERY = 10  # steps from one validation to the next
HELD_OUT = 0.2  # the last part of the text


@dataclass(frozen=True)
class Losses:
    """By step, every `EVERY`: (points, runs)."""

    training: Tensor
    validation: Tensor


@cache  # two claims ask for the same
def train(norm: bool, affine: bool, seed: int) -> Losses:
    """Pre-LN or no norm at all; gamma and beta, if any, start at 1 and 0 and are each run's own."""
    random = generator(seed)
    text, size = characters()
    cut = int(len(text) * (1 - HELD_OUT))
    windows = text.unfold(0, CONTEXT + 1, 1)
    seen, held_out = windows[: cut - CONTEXT], windows[cut:]

    def matrix(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=random) / math.sqrt(shape[-2])).requires_grad_()

    embedding = torch.randn(RUNS, size, EMBEDDING, generator=random).requires_grad_()
    start, up, down = (matrix(RUNS, CONTEXT * EMBEDDING, WIDTH), matrix(LAYERS, RUNS, WIDTH, WIDTH),
                       matrix(LAYERS, RUNS, WIDTH, WIDTH))  # fmt: skip
    head = matrix(RUNS, WIDTH, size)
    gamma = torch.ones(LAYERS + 1, RUNS, 1, WIDTH, requires_grad=affine)
    beta = torch.zeros(LAYERS + 1, RUNS, 1, WIDTH, requires_grad=affine)
    weights = [embedding, start, up, down, head, *([gamma, beta] if affine else [])]
    run = torch.arange(RUNS).view(-1, 1, 1)

    def normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        if not norm:
            return x
        return torch.addcmul(shift, gain, add_norm(x)) if affine else add_norm(x)

    def loss(batch: Tensor) -> Tensor:
        x = embedding[run, batch[..., :-1]].flatten(2) @ start
        *inner, last = zip(gamma.unbind(), beta.unbind(), strict=True)
        for affines, wide, narrow in zip(inner, up.unbind(), down.unbind(), strict=True):
            x = x + F.relu(normed(x, *affines) @ wide) @ narrow
        logits = normed(x, *last) @ head
        return F.cross_entropy(logits.flatten(0, 1), batch[..., -1].flatten(), reduction="none").view(RUNS, -1).mean(1)

    optimiser = torch.optim.Adam(weights, RATE, fused=True)
    training, validation, recent = [], [], []
    for step in range(STEPS + 1):
        batch = seen[torch.randint(len(seen), (RUNS, BATCH), generator=random)]
        found = loss(batch)
        recent.append(found.detach())
        if step % EVERY == 0:
            with torch.no_grad():
                validation.append(loss(held_out[::3].expand(RUNS, -1, -1)))
            training.append(torch.stack(recent[-EVERY:]).mean(0))
        optimiser.zero_grad()
        found.sum().backward()
        optimiser.step()
    return Losses(torch.stack(training), torch.stack(validation))


def characters() -> tuple[Tensor, int]:
    """The demonstration's text as indices of its characters, and how many there are."""
    text = resources.files("addnorm").joinpath("demo/text.txt").read_text(encoding="utf-8")
    index = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([index[character] for character in text]), len(index)
