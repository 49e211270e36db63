"""Checks of plain arguments: each names the argument, what came and what is allowed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST = sys.float_info.max  # an int may be larger

Row = TypeVar("Row")


def check_number(name: str, value: Any, low: float = -math.inf) -> None:
    """A finite number, at least `low`."""
    if isinstance(value, (bool, Tensor)) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {type_name(value)}")
    if not max(low, -LARGEST) <= value <= LARGEST:
        allowed = "a finite number" if low == -math.inf else f"a finite number >= {low:g}"
        raise ValueError(f"{name} must be {allowed}, got {value}")


def check_probability(name: str, value: Any) -> None:
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """A whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type_name(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_switch(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type_name(value)}")


def check_flag(name: str, value: Any) -> None:
    """True, False, or None for the default."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{name} must be True, False or None, got {type_name(value)}")


def check_dtype(name: str, value: Any) -> None:
    if value is None or (isinstance(value, torch.dtype) and value in DTYPES):
        return
    kind = ValueError if isinstance(value, torch.dtype) else TypeError
    raise kind(f"{name} must be None, {names(DTYPES)}, got {value}")


def check_module(name: str, value: Any) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type_name(value)}")


def check_model(model: Any, then: str) -> None:
    """A module of Python code, whose tensors have values. `then` is what the caller is about to do with it."""
    check_module("model", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model is TorchScript, which has no Python code left: give the module that it was made from")
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"model has no values yet: {path} is on the meta device; load the weights, then {then}")


def lookup(what: str, name: Any, table: Mapping[str, Row]) -> Row:
    """The row of a table, or the error that lists what there is."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise ValueError(f"{what}={name!r} is unknown; there are: {', '.join(map(repr, table))}")


def type_name(value: Any) -> str:
    """With its module, unless it is Python's own: numpy has a bool too, others a Tensor."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def names(dtypes: Sequence[torch.dtype]) -> str:
    *most, last = map(str, dtypes)
    return f"{', '.join(most)} or {last}"
