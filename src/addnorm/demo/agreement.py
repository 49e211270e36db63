"""Does the fused model say the same? Embeddings, gradients and answers, beside the original and beside float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .minilm import Batch, embed, neighbour_loss
from .result import Agreement, Query

if TYPE_CHECKING:
    from transformers import BertModel

QUERIES = (
    "What did the label on the bottle say?",
    "She falls slowly into a deep hole.",
    "A garden full of flowers and fountains.",
    "Which animal carries a watch in its pocket?",
    "A book needs pictures.",
)


@torch.no_grad()
def embeddings_of(model: BertModel, batch: Batch) -> Tensor:
    return embed(model, batch).double()


def gradients(model: BertModel, batch: Batch) -> Tensor:
    """Of the training loss, all parameters in one vector; the model is in eval mode, so without dropout."""
    model.zero_grad()
    neighbour_loss(model, batch).backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found.double()


def agreement(embeddings: dict[str, Tensor], grads: dict[str, Tensor]) -> Agreement:
    """From embeddings and gradients, each "before", "after" and "exact"."""
    before, after, exact = (embeddings[kind] for kind in ("before", "after", "exact"))
    size = grads["exact"].norm()
    return Agreement(
        sentences=len(exact),
        difference=(after - before).abs().max().item(),
        original_error=(before - exact).abs().max().item(),
        fused_error=(after - exact).abs().max().item(),
        cosine=torch.cosine_similarity(before, after).min().item(),
        gradient_original_error=((grads["before"] - grads["exact"]).norm() / size).item(),
        gradient_fused_error=((grads["after"] - grads["exact"]).norm() / size).item(),
    )


def answers(before: Tensor, after: Tensor, sentences: list[str]) -> tuple[Query, ...]:
    """The sentence nearest to each query, by the original and by the fused model's embeddings of the sentences and,
    after them, the queries."""
    count = len(sentences)
    old, new = ((found[count:] @ found[:count].T).max(1) for found in (before, after))
    return tuple(
        Query(
            text=text,
            before=sentences[int(old.indices[i])],
            after=sentences[int(new.indices[i])],
            similarity_before=old.values[i].item(),
            similarity_after=new.values[i].item(),
        )
        for i, text in enumerate(QUERIES)
    )
