"""Whether a module, fused by itself, gives what its own code gives: by numbers, on copies of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .base import hook_dicts
from .fast_path import FAST_PATH
from .kernels import taken
from .local import Local
from .sites import WITHOUT_NUMBERS
from .trial import disagreement

ALONE = "the norm alone: a sum before it is made in another module's code, which this mode does not see"
JUDGING = threading.RLock()  # held until torch's random state, which all threads have in common, is restored


@dataclass(frozen=True)
class Verdict:
    """Which reading is trusted, and its backend; or the reason why none is, which is None where no number told."""

    reading: Local | None = None
    backend: str = ""
    reason: str | None = ""


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
        again = tensors(twin(*args, **kwargs))  # else chance would pass for an error, which the fused may have too
        if not all(torch.allclose(*both, equal_nan=True) for both in zip(before, again, strict=True)):
            raise ValueError("it draws random numbers, so that no two of its results are alike")
        with torch.autocast(device_type=before[0].device.type, enabled=False):
            args64, kwargs64 = on_floats(Tensor.double, (args, kwargs))
            return cls(twin, args, kwargs, before, tensors(copy.deepcopy(twin).double()(*args64, **kwargs64)))

    def objection(self, reading: Local) -> str | None:
        """As `disagreement` has it."""
        local = copy.copy(reading)
        local.module = self.twin
        try:
            after = tensors(local.forward(*self.args, **self.kwargs))
        except Exception as error:  # of any class, as below
            return f"it fails where it is fused: {error}"
        return disagreement(after, self.before, self.exact)


@torch.no_grad()
def judged(readings: list[Local], args: Any, kwargs: Any) -> Verdict:
    """The first reading that gives what the module gives.

    Compared are copies: one as it is, in eval mode, so without dropout, on the call's own arguments; one with other
    vectors, as most are 0 or 1 at first and would not tell what is done with them, on what the reading asks for; and
    where something drops in training, one that drops all.
    """
    first = readings[0]
    with aside(first.module):
        try:
            own = Case.of(copied(first.module).eval(), args, kwargs)
            cases = [own, Case.of(varied(first.module).train(not first.drops), *on_floats(first.probe, (args, kwargs)))]
            if first.drops:
                cases.append(Case.of(dropping(first), args, kwargs))
        except Exception as error:  # the model's code may raise any, in float64 or copied, and runs as it was
            return Verdict(reason=f"it can not be tried on a copy: {error}")
        reason: str | None = ""
        for reading in readings:
            reason = next((found for case in cases if (found := case.objection(reading)) != ""), "")
            if reason == "":
                part = reading.parts()[0]
                backend, objection = taken(own.before[0], norm=part.kind)
                if objection:
                    return Verdict(reason=objection if part.folded else f"{ALONE}; {objection}")
                return Verdict(reading, backend)
        return Verdict(reason=reason)


@contextmanager
def aside(module: nn.Module) -> Iterator[None]:
    """Torch's random state is kept meanwhile, and its fast path for encoder layers is off: copies run in eval without
    gradients, where that takes the weights of Linears and passes over what wraps them."""
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    with JUDGING, torch.random.fork_rng(devices=list(devices)), FAST_PATH.off():
        yield


def copied(module: nn.Module) -> nn.Module:
    """A copy without hooks, which are to see the model's own calls alone."""
    return copy.deepcopy(module, {id(hooks): type(hooks)() for hooks in hook_dicts(module.modules())})


def dropping(reading: Local) -> nn.Module:
    """A copy in training that drops all, so that it tells where without chance. Its Linears have a bias: without one,
    nothing comes out where nothing goes in, and a dropout before it would look like one after it."""
    twin = varied(reading.module).train()
    for name in reading.drops:
        setattr(twin, name, nn.Dropout(1.0))
    for linear in twin.modules():
        if type(linear) is nn.Linear and linear.bias is None:
            linear.bias = nn.Parameter(torch.linspace(0.5, 1, linear.out_features).to(linear.weight))
    return twin


def varied(module: nn.Module) -> nn.Module:
    """A copy in which every parameter and buffer of one number or one row is another."""
    twin = copied(module)
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.dim() <= 1 and tensor.is_floating_point():
            tensor.data = tensor.data + torch.linspace(0.5, 1, tensor.numel()).to(tensor).view_as(tensor)
    return twin


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def on_floats(function: Any, arguments: Any) -> Any:
    """The arguments, with what the function makes of every floating-point tensor."""
    return tree_map(lambda t: function(t) if isinstance(t, Tensor) and t.is_floating_point() else t, arguments)
