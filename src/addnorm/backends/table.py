"""The backends in order of preference, and the one place that chooses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..call import Call, Gradient
from ..checks import lookup
from .base import Backend, Support, once_a_graph
from .cpu import Cpu
from .eager import Eager
from .triton import Triton

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Cpu(), Triton(), Eager())}
KERNELS = {"cpu": Cpu.name, "cuda": Triton.name}  # the backend that is made for a type of device


@dataclass(frozen=True)
class Dispatch:
    """Which backend a call takes, and what each says of it."""

    chosen: str
    support: dict[str, Support]

    def __str__(self) -> str:
        lines = [f"{self.chosen} takes this call"]
        for name, support in self.support.items():
            verdict = "yes" if support else "no"
            lines.append(f"  {name}: {verdict}{', ' if support.reason else ''}{support.reason}")
        return "\n".join(lines)


def backend_of(name: str | None, t: Tensor) -> Backend:
    """The backend of an operator's call: the named one, or the kernels of its main tensor's device."""
    return lookup("backend", name or KERNELS.get(t.device.type, Eager.name), BACKENDS)


def able(name: str | None, call: Call | Gradient) -> Backend:
    """The same, if it can carry out the call."""
    backend = backend_of(name, call.main)
    return check_support(backend, backend.supports(call))


def check_support(backend: Backend, support: Support) -> Backend:
    if not support:
        raise ValueError(f"backend={backend.name!r} can not take this call: {support.reason}")
    return backend


def select(call: Call, name: str | None = None) -> Backend:
    """The named backend, or the first that supports the call. A named one that can not is an error."""
    if name is None:
        verdicts = ((backend, supports(backend, call)) for backend in BACKENDS.values())
        return next(backend for backend, support in verdicts if support and not support.reason)
    backend = lookup("backend", name, BACKENDS)
    return check_support(backend, supports(backend, call))


def explain(call: Call, name: str | None = None) -> Dispatch:
    return Dispatch(select(call, name).name, {name: supports(backend, call) for name, backend in BACKENDS.items()})


def supports(backend: Backend, call: Call) -> Support:
    if backend.name != Eager.name and transforms_active():
        return Support.no("torch.func transforms and forward-mode AD differentiate the plain torch of 'eager' only")
    return backend.supports(call)


def transforms_active() -> bool:
    """Whether the call runs under torch.func (grad, vmap, jvp, ...) or forward-mode AD."""
    return in_transform() or forward_ad._current_level >= 0


@once_a_graph
def in_transform() -> bool:
    """Under torch.func; a graph is traced inside the transforms that it enters."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
