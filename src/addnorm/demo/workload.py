"""What MiniLM gains in one use of it: the whole, as `addnorm fuse` measures it, and the Add & Norm calls alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..progress import Progress
from . import sites
from .folder import Batch, pair_loss
from .pair import measure
from .result import Workload

if TYPE_CHECKING:
    from transformers import BertModel


def workload(
    name: str, models: dict[str, BertModel], batch: Batch, *, training: bool, rounds: int, progress: Progress
) -> Workload:
    """Times of one use of the models "before", "captured" (run from the captured graph, nothing fused) and "after",
    which are three copies of one. Training changes their weights."""
    found = sites.sites_of(models["before"].train(training), batch)
    alone = sites.forward_backward if training else sites.forward
    beside = {"sites before": alone(found, fused=False), "sites after": alone(found, fused=True)}
    times = measure(
        name, models, batch, training=training, loss=pair_loss, rounds=rounds, beside=beside, progress=progress
    )
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
