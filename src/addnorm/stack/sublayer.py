"""Calling a sublayer, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..words import count as counted

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # *args, **kwargs


def branch_of(
    sublayer: nn.Module, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any], expected: torch.Size, where: str
) -> tuple[Tensor, tuple[Any, ...]]:
    """The branch, and what else came: of a tuple the first item is the branch (attention returns weights or caches
    behind it).

    Raises:
        TypeError: where that is no tensor, or the sublayer can not be called with these arguments.
        ValueError: where its shape is not `expected`, the skip's.
    """
    try:
        result = sublayer(x, *args, **kwargs)
    except TypeError as error:
        if wrong := misfit(sublayer, (x, *args), kwargs):
            raise TypeError(f"{where} {wrong}") from error
        raise
    branch, rest = (result[0], tuple(result[1:])) if isinstance(result, tuple) and result else (result, ())
    kind = type(sublayer).__name__
    if not isinstance(branch, Tensor):
        raise TypeError(
            f"{where} ({kind}) must return a tensor, or a tuple whose first item is one, got {given_types(result)}"
        )
    if branch.shape != expected:
        raise ValueError(
            f"{where} ({kind}) returned shape {tuple(branch.shape)} where the skip has {tuple(expected)}: they are "
            "added, so that they must be equal (addnorm.Residual takes a shortcut= that maps the skip)"
        )
    return branch, rest


def misfit(sublayer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Why a sublayer's forward does not take these arguments, and what to do; "" where it does."""
    try:
        signature = inspect.signature(sublayer.forward)
    except ValueError:  # written in C
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        reason = str(error)
    else:
        return ""
    kind = type(sublayer).__name__
    beside = [f"{counted(len(args) - 1, 'argument')} more"] if len(args) > 1 else []
    *most, last = ["x", *beside, *kwargs]
    given = f"{', '.join(most)} and {last}" if most else last
    needed = [name for name, p in signature.parameters.items() if p.default is p.empty and p.kind not in VARIABLE]
    others = [name for name in signature.parameters if name not in needed]
    takes = ", ".join([*needed, *([f"[{', '.join(others)}]"] if others else [])])
    text = f"({kind}) is called with {given}: {reason}. Its forward takes {takes}."
    if len(needed) < 2:
        return text
    return f"""{text} Give it all in the call, or wrap it so that it takes x alone, for self-attention:
class OfOne({kind}):
    def forward(self, x, **options): return super().forward({", ".join(["x"] * len(needed))}, **options)"""


def given_types(value: Any) -> str:
    """
    >>> given_types([{}, None]), given_types({})
    ('list of dict and NoneType', 'dict')
    """
    items = [type(item).__name__ for item in value] if isinstance(value, (list, tuple)) else []
    return f"{type(value).__name__}{' of ' if items else ''}{' and '.join(items)}"
