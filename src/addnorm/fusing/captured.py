"""A model's call as Dynamo captures it."""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Hashable
from itertools import chain, count
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from .base import BACKWARD_HOOKS, hook_dicts
from .quiet import Quiet

Backend = Callable[[GraphModule, list[Any]], Callable[..., Any]]
NUMBERS = count()
MOST = 64  # captures kept: a hook that comes anew at each step makes one each


class Captured:
    """A model's call, captured by Dynamo for a backend: once for each `version`, a name for what no guard watches.

    Dynamo keeps backends for good, and what they make where no garbage collector looks. So the backend, a method, is
    known by a weak reference, and what it makes must not hold the model.
    """

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self.model = model
        self._backend = weakref.WeakMethod(backend)
        self._calls: dict[Hashable, Callable[..., Any]] = {}
        self.done: set[Hashable] = set()  # the versions of which one call has come to its end

    def __call__(self, version: Hashable, *args: Any, **kwargs: Any) -> Any:
        call = self._calls.get(version)
        if call is None:
            if len(self._calls) >= MOST:
                self._calls.clear()
                self.done.clear()
            QUIET.listen()
            call = torch.compile(traced(self.model), backend=by_reference(self._backend), **isolation())
            if any(hook_dicts(self.model.modules())):
                call = guarded(call)
            call = self._calls.setdefault(version, call)  # another thread may have come first
        result = call(*args, **kwargs)
        self.done.add(version)
        return result


class Unguarded:
    """What Dynamo's guards do not watch in a model's modules, as they are now: their hooks, and their classes' code."""

    def __init__(self, model: nn.Module) -> None:
        self._hooks = hook_dicts(model.modules())
        self._backward_hooks = hook_dicts((each for each in model.modules() if each is not model), BACKWARD_HOOKS)
        self._kinds = list(dict.fromkeys(map(type, model.modules())))

    def version(self) -> tuple[Hashable, ...]:
        """The hooks there are, by number, and the forwards of the classes."""
        return *chain.from_iterable(self._hooks), *[kind.forward for kind in self._kinds]

    def loses_hooks(self) -> bool:
        """Whether a module inside has a backward hook now, of which Dynamo leaves some out in silence."""
        return torch.is_grad_enabled() and any(self._backward_hooks)


QUIET = Quiet(Captured.__call__.__code__)


def by_reference(method: weakref.WeakMethod[Backend]) -> Backend:
    def backend(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        alive = method()
        assert alive is not None, "who captures is at work"
        return alive(module, inputs)

    return backend


def traced(model: nn.Module) -> Callable[..., Any]:
    """The function that Dynamo traces, with a code object and a name of its own: Dynamo keeps its cache by the one, and
    by the other which numbers have varied. So a model's neighbour, with another eps, say, leaves no trace in it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    code = call.__code__.replace(co_name=f"fused_call_{next(NUMBERS)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
    """A captured call of a model with hooks. Where a capture breaks off, Dynamo goes on with the code of each forward,
    which modules share: it would take what it captured of one without hooks for another that has some."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            return call(*args, **kwargs)

    return run


def isolation() -> dict[str, Any]:
    """Options of newer torch: no cache shared with other compiled functions, and room for many variants."""
    wanted = {"isolate_recompiles": True, "recompile_limit": 64}
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in wanted.items() if name in known}
