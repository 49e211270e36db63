"""What stands in a fused model's place of call, whatever the mode."""

from __future__ import annotations

import functools
import sys
import threading
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules import module as module_file
from torch.utils._device import DeviceContext

from ..backends import transforms_active
from ..modules import AddNorm
from .place import InPlace, put, take
from .report import Outcome, Report

HOOKS = {  # where a module keeps its hooks, and how they are called
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}
BACKWARD_HOOKS = [name for name in HOOKS if "backward" in name]
NORMS = ("LayerNorm", "RMSNorm")  # how the names of classes of norms end


class FusedCall(InPlace, ABC):
    """A model's call, fused. One class for each mode."""

    mode: ClassVar[str]

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.report = Report(mode=self.mode, own=sum(isinstance(module, AddNorm) for module in model.modules()))
        self.handle: Any = None
        self.lock = threading.Lock()  # held while what one pass found is taken over for all
        self._visible: dict[str, Any] = {}  # what else of ours is in the model's __dict__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            compiled_around(type(self.model).__name__)
        return (self.model._call_impl if is_traced() else self.call)(*args, **kwargs)

    @abstractmethod
    def call(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own call gives."""

    def install(self) -> None:
        """Take the model's place of call; under PLACES."""
        put(self.model, self)
        self._visible = visible(self.model, self.mode)
        self.model.__dict__.update(self._visible)

    def remove(self) -> None:
        """Give the model its own call back, unless one that is not ours took this one's place; under PLACES."""
        take(self.model, self)
        hide(self.model, self._visible)

    def complete(self) -> None:
        """After the first pass: tell of the norms that were not seen, and warn where nothing is fused."""
        self.report.complete = True
        for name in unseen(self.model, self.report):
            self.report.record(Outcome(name, 0, "", fused=False, reason=self.why_unseen(name)))
        if not self.gained():
            name = type(self.model).__name__
            warnings.warn(f"addnorm.fuse found nothing to fuse in {name}: {self.report}", stacklevel=6)

    def gained(self) -> int:
        """How many norm calls the mode is there for run fused."""
        return self.report.fused

    @abstractmethod
    def why_unseen(self, name: str) -> str:
        """Why no call of a norm module was seen."""


def is_traced() -> bool:
    """Whether another compiles, exports, traces, transforms or watches: that sees the plain model, as a copy is."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or is_fx_symbolic_tracing()
        or transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or (torch._C._len_torch_function_stack() > 0 and is_overridden())
    )


def is_overridden() -> bool:
    """Whether a mode may answer for torch's functions; a default device is one that does not matter here."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return not all(isinstance(mode, DeviceContext) for mode in modes)


def hook_dicts(modules: Iterable[nn.Module], names: Iterable[str] = tuple(HOOKS)) -> list[dict[int, Any]]:
    """Where the hooks of modules are kept, and those of all modules."""
    own = [getattr(module, name) for module in modules for name in names]
    return own + [getattr(module_file, f"_global{name}") for name in names]


@torch._dynamo.assume_constant_result
def compiled_around(name: str) -> None:
    """Called while Dynamo traces a fused model for another, who compiles around it; not for one fused as a whole."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if isinstance(frame.f_locals.get("self"), FusedCall):
            return
    warnings.warn(
        f"the fused {name} is compiled once more by torch.compile, which takes its plain code: nothing is fused there, "
        "unless that has options={'pre_grad_custom_pass': addnorm.FusePass()}; or fuse with mode='inductor' and do not "
        "compile around it",
        stacklevel=2,
    )


def visible(model: nn.Module, mode: str) -> dict[str, Any]:
    """What a fused model has of its own beside its call.

    - ``forward``, which calls the class's: Dynamo goes straight to that where the instance has none, and who compiles
      around the model would not meet its call.
    - ``compile``, which would put another call in this one's place: an error.
    - ``_replicate_for_data_parallel``: a replica would have this model's call, with this model's weights: an error.
    - ``__prepare_scriptable__``: `torch.jit.script` would give its result this model's call: an error.
    - ``__getstate__``: what copies and saves the model sees none of these, as `torch.nn.Module.__getstate__` hides
      PLACE.
    """

    def state() -> dict[str, Any]:
        found = {**type(model).__getstate__(model)}  # pyright: ignore
        return {name: value for name, value in found.items() if value is not ours.get(name)}

    def no_replica() -> None:
        raise RuntimeError(
            f"{type(model).__name__} is fused in mode {mode!r}, which nn.DataParallel can not copy to another "
            "device: use DistributedDataParallel, or undo the fusing"
        )

    def no_script() -> None:
        raise RuntimeError(
            f"{type(model).__name__} is fused in mode {mode!r}, which torch.jit.script can not read: give it a copy "
            "(copy.deepcopy(model)), which is of the plain model, or undo the fusing"
        )

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            f"{type(model).__name__} is fused in mode {mode!r}, which compile() would undo: fuse it with "
            "mode='inductor' and leave compile() out, or undo the fusing and compile with an addnorm.FusePass()"
        )

    ours: dict[str, Any] = {
        "__getstate__": state,
        "__prepare_scriptable__": no_script,
        "_replicate_for_data_parallel": no_replica,
        "compile": refuse,
    }
    if "forward" not in model.__dict__:
        ours["forward"] = forward_of_class(model)
    return ours


def forward_of_class(model: nn.Module) -> Callable[..., Any]:
    """The class's forward, which is looked up at each call: it may be replaced, and so may the model's class."""
    now = model.forward
    if not isinstance(now, types.MethodType):  # a static one
        return now

    @functools.wraps(now.__func__)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return type(self).forward(self, *args, **kwargs)

    return types.MethodType(forward, model)


def hide(model: nn.Module, ours: dict[str, Any]) -> None:
    """Undoes `visible`, where another has not set these since."""
    for name, value in ours.items():
        if model.__dict__.get(name) is value:
            del model.__dict__[name]


def unseen(model: nn.Module, report: Report) -> list[str]:
    """The model's norm modules of which no call was seen."""
    called = {outcome.norm for outcome in report.sites}
    norms = {name for name, module in model.named_modules() if type(module).__name__.endswith(NORMS)}
    return sorted(norms - called)
