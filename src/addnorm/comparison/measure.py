"""Runs the comparison. It prints nothing: progress goes to a callback, the findings are returned."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from ..machine import describe
from ..placements import PLACEMENTS
from ..progress import Progress, silent
from . import toy
from .result import Comparison, Row
from .traffic import traffic

GRADIENT_SEED = 0


def compare(
    names: Sequence[str] = tuple(PLACEMENTS),
    *,
    layers: int = toy.LAYERS,
    seeds: int = 3,
    steps: int = toy.STEPS,
    progress: Progress = silent,
) -> Comparison:
    """Each placement on the toy model: parameters, reads and writes, gradients at initialisation, loss after training.

    Args:
        names: Of placements.
        layers: Of the toy model, two sublayers each.
        seeds: How often each is trained; 0 leaves that out.
        steps: Of training.
        progress: Called as ``progress(label, done, total)`` before each training and at the end.
    """
    start, rows, total = time.perf_counter(), [], len(names) * max(seeds, 1)
    for place, name in enumerate(names):
        losses = []
        for seed in range(seeds):
            progress(f"{name}, seed {seed}", place * seeds + seed, total)
            losses.append(toy.final_loss(name, layers=layers, seed=seed, steps=steps))
        rows.append(row(name, layers, tuple(losses)))
    progress("done", total, total)
    return Comparison(
        rows=tuple(rows), layers=layers, width=toy.WIDTH, steps=steps, seeds=seeds, chance=toy.CHANCE,
        machine=describe(), seconds=time.perf_counter() - start,
    )  # fmt: skip


def row(name: str, layers: int, losses: tuple[float, ...]) -> Row:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(GRADIENT_SEED)
        model = toy.Toy(name, layers)
        model.loss(toy.symbols()).backward()
    feed_forward = model.stack.sublayers[1::2]
    reads, writes = traffic(name, layers, toy.WIDTH)
    slots = (p for key, p in model.stack.sublayers.named_parameters() if ".norm." in key)
    own = [*model.stack.placement.parameters(), *slots]
    return Row(
        name=name,
        algebra=model.stack.placement.algebra(),
        parameters=sum(p.numel() for p in own),
        reads=reads,
        writes=writes,
        gradients=tuple(gradient_norm(sublayer) for sublayer in feed_forward),
        losses=losses,
    )


def gradient_norm(sublayer: torch.nn.Module) -> float:
    """Of the sublayer's matrices."""
    grads = [p.grad for p in sublayer.parameters() if p.dim() == 2 and p.grad is not None]
    return torch.stack([g.norm() for g in grads]).norm().item()
