"""The Add & Norm calls of a BERT alone, with the tensors they have inside it: as they were, and fused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..functional import add_norm
from .folder import Batch

if TYPE_CHECKING:
    from transformers import BertModel


@dataclass(frozen=True)
class Site:
    """One call: ``norm(residual + dropout(x))``; the sum of the embeddings has no dropout."""

    x: Tensor
    residual: Tensor
    norm: nn.LayerNorm
    dropout_p: float

    def original(self) -> Tensor:
        return self.norm(self.residual + (F.dropout(self.x, self.dropout_p) if self.dropout_p else self.x))

    def fused(self) -> Tensor:
        norm = self.norm
        return add_norm(
            self.x, self.residual.expand_as(self.x), norm.weight, norm.bias, eps=norm.eps, dropout_p=self.dropout_p
        )


def sites_of(model: BertModel, batch: Batch) -> list[Site]:
    """The sites of one pass, with their tensors; dropout as the model's mode has it."""
    found: list[Site] = []
    embeddings = model.embeddings

    def sublayer(module: nn.Module, arguments: tuple[Tensor, Tensor], _: Tensor) -> None:
        p = module.dropout.p if module.training else 0.0  # pyright: ignore
        with torch.no_grad():
            found.append(Site(module.dense(arguments[0]), arguments[1].detach(), module.LayerNorm, p))  # pyright: ignore

    def first(_: nn.Module, arguments: tuple[Tensor]) -> None:
        # Of the sum only the result is seen: taken apart again into a position's part and the rest.
        positions = embeddings.position_embeddings.weight[: arguments[0].shape[1]].detach().unsqueeze(0)
        found.append(Site(arguments[0].detach() - positions, positions, embeddings.LayerNorm, 0.0))

    with hooked(model, sublayer, first), torch.no_grad():
        model(**batch)
    return found


@contextmanager
def hooked(model: BertModel, sublayer: Callable, first: Callable) -> Iterator[None]:
    handles = [model.embeddings.LayerNorm.register_forward_pre_hook(first)]
    handles += [
        module.register_forward_hook(sublayer)
        for module in model.modules()
        if type(module).__name__ in ("BertSelfOutput", "BertOutput")
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(sites: list[Site], *, fused: bool) -> Callable[[], Tensor]:
    """All calls, one after another. As in the model, a result lives until the next is there, whose residual it is."""
    first, *others = [site.fused if fused else site.original for site in sites]

    @torch.no_grad()
    def run() -> Tensor:
        result = first()
        for call in others:
            result = call()
        return result

    return run


def forward_backward(sites: list[Site], *, fused: bool) -> Callable[[], tuple[Tensor, ...]]:
    """All calls, then their gradients: of x, of the residual, of weight and bias."""
    ready = [Site(s.x.requires_grad_(), s.residual.requires_grad_(), s.norm, s.dropout_p) for s in sites]
    calls = [site.fused if fused else site.original for site in ready]
    inputs = [t for s in ready for t in (s.x, s.residual, s.norm.weight, s.norm.bias)]
    upstream = [torch.randn_like(site.x) for site in ready]

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad([call() for call in calls], inputs, upstream)

    return run
