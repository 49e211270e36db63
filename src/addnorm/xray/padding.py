"""The same batch with something else in its padding."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .tokens import MASKS, RealTokens


def repadded(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], real: RealTokens, *, batch_first: bool
) -> tuple[Any, ...]:
    """``(args, kwargs)`` in which every input with one entry per token has, in the padding, entries of real tokens.

    Labels, which only the loss reads, and the masks stay.
    """
    keep = {*MASKS, "labels"}

    def changed(name: str, value: Any) -> Any:
        mask = real.of_input(name)
        if name in keep or mask is None or not per_token(value, mask):
            return value
        return other_padding(value, mask if batch_first or value.dim() < 3 else mask.T)

    names = list(inspect.signature(model.forward).parameters)
    names += ["" for _ in args[len(names) :]]
    new_args = tuple(changed(name, value) for name, value in zip(names, args, strict=False))
    return new_args, {name: changed(name, value) for name, value in kwargs.items()}


def per_token(value: Any, real: Tensor) -> bool:
    """Whether an input has content for each token; a boolean one is a mask."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool:
        return False
    content = value.dim() == 3 if value.is_floating_point() else value.dim() == 2
    return content and value.shape[:2] in (real.shape, real.T.shape)


def other_padding(value: Tensor, real: Tensor) -> Tensor:
    """The padding filled with entries of real tokens, the last first; floating-point ones moved by 1 beside."""
    if value.shape[:2] != real.shape or not real.any():
        return value
    taken = value[real].flip(0)
    count = int((~real).sum())
    filler = taken[torch.arange(count, device=value.device) % len(taken)]
    changed = value.clone()
    changed[~real] = filler + 1 if value.is_floating_point() else filler
    return changed
