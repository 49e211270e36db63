"""Whether a module, fused by itself, gives what its own code gives: by numbers, on copies of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .kernels import taken
from .local import Local
from .sites import WITHOUT_NUMBERS
from .trial import disagreement

ALONE = "the norm alone: a sum before it is made in another module's code, which this mode does not see"


@dataclass(frozen=True)
class Case:
    """A copy of a module, and a call of it: what its own code gives, and that in float64."""

    twin: nn.Module
    args: Any
    kwargs: Any
    before: tuple[Tensor, ...]
    exact: tuple[Tensor, ...]

    @classmethod
    def of(cls, twin: nn.Module, args: Any, kwargs: Any) -> Case:
        before = tensors(twin(*args, **kwargs))
        if before[0].is_meta:
            raise ValueError(WITHOUT_NUMBERS)
        with torch.autocast(device_type=before[0].device.type, enabled=False):
            args64, kwargs64 = on_floats(Tensor.double, (args, kwargs))
            return cls(twin, args, kwargs, before, tensors(copy.deepcopy(twin).double()(*args64, **kwargs64)))

    def verdict(self, reading: Local) -> str | None:
        """As `disagreement` has it."""
        local = copy.copy(reading)
        local.module = self.twin
        try:
            after = tensors(local.forward(*self.args, **self.kwargs))
        except (TypeError, ValueError, RuntimeError) as error:
            return f"add_norm refuses it: {error}"
        return disagreement(after, self.before, self.exact)


@torch.no_grad()
def judged(readings: list[Local], args: Any, kwargs: Any) -> tuple[Local | None, str, str | None]:
    """``(reading, backend, reason)``: the first reading that gives what the module gives, or why there is none.

    Compared are two copies: one as it is, in eval mode, so without dropout, on the call's own arguments; and one with
    other vectors, as most are 0 or 1 at first and would not tell what is done with them, on what the reading asks for.
    """
    first = readings[0]
    try:
        own = Case.of(copy.deepcopy(first.module).eval(), args, kwargs)
        other = Case.of(varied(first.module).train(not first.draws), *on_floats(first.probe, (args, kwargs)))
    except (TypeError, ValueError, RuntimeError) as error:
        return None, "", f"it can not be tried on a copy: {error}"
    reason: str | None = ""
    for reading in readings:
        reason = next((verdict for case in (own, other) if (verdict := case.verdict(reading)) != ""), "")
        if reason == "":
            part = reading.parts()[0]
            backend, objection = taken(own.before[0], norm=part.kind)
            if objection:
                return None, "", objection if part.folded else f"{ALONE}; {objection}"
            return reading, backend, ""
    return None, "", reason


def varied(module: nn.Module) -> nn.Module:
    """A copy in which every parameter and buffer of one number or one row is another."""
    twin = copy.deepcopy(module)
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.dim() <= 1 and tensor.is_floating_point():
            tensor.data = tensor.data + torch.linspace(0.5, 1, tensor.numel()).to(tensor).view_as(tensor)
    return twin


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def on_floats(function: Any, arguments: Any) -> Any:
    """The arguments, with what the function makes of every floating-point tensor."""
    return tree_map(lambda t: function(t) if isinstance(t, Tensor) and t.is_floating_point() else t, arguments)
