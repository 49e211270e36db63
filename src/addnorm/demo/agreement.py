"""Does the fused MiniLM say the same? Its embeddings and answers, beside the original's and beside float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .folder import Batch, embeddings
from .result import Agreement, Errors, Query

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
    return embeddings(model(**batch)[0], batch).double()


def agreement(found: dict[str, Tensor], errors: Errors) -> Agreement:
    """From embeddings, "before", "after" and "exact", and the errors of outputs and gradients."""
    before, after, exact = (found[kind] for kind in ("before", "after", "exact"))
    return Agreement(
        sentences=len(exact),
        difference=(after - before).abs().max().item(),
        original_error=(before - exact).abs().max().item(),
        fused_error=(after - exact).abs().max().item(),
        cosine=torch.cosine_similarity(before, after).min().item(),
        output_original_error=errors.output_error["before"],
        output_fused_error=errors.output_error["after"],
        gradient_original_error=errors.gradient_error["before"],
        gradient_fused_error=errors.gradient_error["after"],
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
