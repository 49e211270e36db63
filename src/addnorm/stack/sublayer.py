"""Calling a sublayer, and what it may return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def branch_of(
    sublayer: nn.Module, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], expected: torch.Size, where: str
) -> tuple[Tensor, tuple[Any, ...]]:
    """The branch, and what else came: of a tuple the first item is the branch (attention returns weights or caches
    behind it).

    Raises:
        TypeError: where that is no tensor.
        ValueError: where its shape is not `expected`, the skip's.
    """
    result = sublayer(x, *args, **kwargs)
    branch, rest = (result[0], tuple(result[1:])) if isinstance(result, tuple) and result else (result, ())
    kind = type(sublayer).__name__
    if not isinstance(branch, Tensor):
        raise TypeError(
            f"{where} ({kind}) must return a tensor, or a tuple whose first item is one, got {type(branch).__name__}"
        )
    if branch.shape != expected:
        raise ValueError(
            f"{where} ({kind}) returned shape {tuple(branch.shape)} where the skip has {tuple(expected)}: they are "
            "added, so that they must be equal (addnorm.Residual takes a shortcut= that maps the skip)"
        )
    return branch, rest


def check_module(name: str, value: Any) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def check_width(x: Tensor, d_model: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() == 0 or x.shape[-1] != d_model:
        raise ValueError(f"x has shape {tuple(x.shape)}: its last dimension must be d_model = {d_model}")
