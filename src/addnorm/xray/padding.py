"""The same batch with something else in its padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .tokens import MASKS


def repadded(args: tuple[Any, ...], kwargs: dict[str, Any], real: Tensor, *, batch_first: bool) -> tuple[Any, ...]:
    """``(args, kwargs)`` in which every input with one entry per token has, in the padding, entries of real tokens.

    Labels, which only the loss reads, and the masks stay.
    """

    def changed(value: Any) -> Any:
        return other_padding(value, real if batch_first or value.dim() < 3 else real.T)

    keep = {*MASKS, "labels"}
    new_args = tuple(changed(value) if per_token(value, real) else value for value in args)
    new_kwargs = {
        name: changed(value) if name not in keep and per_token(value, real) else value for name, value in kwargs.items()
    }
    return new_args, new_kwargs


def per_token(value: Any, real: Tensor) -> bool:
    """Whether an input has content for each token; a boolean one is a mask."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return False
    content = value.dim() == 3 if value.is_floating_point() else value.dim() == 2
    return content and value.shape[:2] in (real.shape, real.T.shape)


def other_padding(value: Tensor, real: Tensor) -> Tensor:
    """The padding filled with entries of real tokens, the last first; floating-point ones moved by 1 beside."""
    if value.shape[:2] != real.shape:
        return value
    taken = value[real].flip(0)
    count = int((~real).sum())
    filler = taken[torch.arange(count, device=value.device) % len(taken)]
    changed = value.clone()
    changed[~real] = filler + 1 if value.is_floating_point() else filler
    return changed
