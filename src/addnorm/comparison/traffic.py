"""What the sums and norms of a placement read and write, counted while they run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..placements import Slot
from ..stack import Stack

SHAPE = (2, 3)  # of the rows; any will do


class Counter(TorchDispatchMode):
    """Elements that the operators under it read and write. A view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.read += elements(tree_leaves((args, kwargs)))
            self.written += elements(tree_leaves(result))
        return result


def elements(leaves: Iterable[Any]) -> int:
    """Of the tensors with a row dimension: weights are the same few for every row."""
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 1)


class Still(nn.Module):
    """A sublayer that only offers slots and hands on what it was given: nothing but the placement is counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_norm, self.k_norm, self.v_norm, self.inner_norm = (Slot(width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for slot in (self.q_norm, self.k_norm, self.v_norm, self.inner_norm):
            slot(x)
        return x


def traffic(placement: str, layers: int, width: int) -> tuple[float, float]:
    """(..., d) tensors read and written per sublayer in a forward without dropout, norms inside the sublayer, taken as
    wide as it, included.

    >>> traffic("post", 4, 32)
    (2.0, 1.0)
    """
    stack = Stack([Still(width) for _ in range(2 * layers)], width, placement=placement)
    x = torch.ones(*SHAPE, width)
    with torch.no_grad(), Counter() as counter:
        stack(x)
    per = 2 * layers * x.numel()
    return counter.read / per, counter.written / per
