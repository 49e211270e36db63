"""What it gains: the sites alone, whole inference and a whole training step, before and after, interleaved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..clock import interleaved
from . import sites
from .minilm import Batch, embed, neighbour_loss
from .result import Workload

if TYPE_CHECKING:
    from transformers import BertModel

Progress = Callable[[str, int, int], None]
Step = Callable[[], object]


def workload(
    name: str, models: dict[str, BertModel], batch: Batch, *, training: bool, rounds: int, progress: Progress
) -> Workload:
    """Times of one use of the models "before", "captured" (run from the captured graph, nothing fused) and "after",
    which are three copies of one. Training changes their weights."""
    for model in models.values():
        model.train(training)
    step = training_step if training else inference
    found = sites.sites_of(models["before"], batch)
    alone = sites.forward_backward if training else sites.forward
    functions = {
        **{kind: step(model, batch) for kind, model in models.items()},
        "sites before": alone(found, fused=False),
        "sites after": alone(found, fused=True),
    }
    for each in functions.values():  # captures, and the tries of the sites, before the clock runs
        each()
    progress(name, 0, rounds)
    done = iter(range(1, rounds + 1))
    times = interleaved(
        functions, rounds=rounds, warmup=0, budget=8.0, progress=lambda: progress(name, next(done), rounds)
    )
    progress(name, rounds, rounds)
    size, tokens = batch["input_ids"].shape
    return Workload(
        name=name,
        batch=size,
        tokens=tokens,
        training=training,
        dropout=models["before"].config.hidden_dropout_prob if training else 0.0,
        before=times["before"],
        captured=times["captured"],
        after=times["after"],
        sites_before=times["sites before"],
        sites_after=times["sites after"],
    )


def inference(model: BertModel, batch: Batch) -> Step:
    return torch.no_grad()(lambda: embed(model, batch))


def training_step(model: BertModel, batch: Batch) -> Step:
    """Forward with dropout, loss, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        neighbour_loss(model, batch).backward()
        optimizer.step()

    return step
