"""Mode "eager": what Dynamo traces of a model is rewritten, tried once, then run operation by operation."""

from __future__ import annotations

import inspect
import types
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from .base import FusedCall, hook_dicts
from .callers import Callers
from .fast_path import REASON, NestedEncoders
from .piece import Piece

NUMBERS = count()


class EagerCall(FusedCall):
    """The captured graph, its sites fused, run operation by operation; see `addnorm.fuse` for what it promises."""

    mode = "eager"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.captures = 0
        self._ran = False  # whether a captured piece ran in this call
        self._given_up = False  # whether the model can not be captured
        self._open: list[Piece] = []
        self._versions: dict[tuple[int, ...], str] = {}
        self._hooks: list[dict[int, Any]] = []
        self.callers = Callers(model)
        self._breaks = Counter(counters["graph_break"])
        self._nested = NestedEncoders(model)
        self.look_over()
        self.start()

    def start(self) -> None:
        self._captured = torch.compile(traced(self.model), backend=self.rewrite, **isolation())

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self._given_up or self._nested.take_over():
            result = self.model._call_impl(*args, **kwargs)
        else:
            result = self.run(*args, **kwargs)
        if self._open or self._first:
            self.settle()
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The captured call; the model's own where Dynamo gives it up, so that its own errors are raised as ever."""
        self._ran = False
        try:
            return self.entry()(self.version(), *args, **kwargs)
        except TorchDynamoException as error:
            if self._ran:  # from the start again would do twice what the first part has done
                raise
            failure = error
        except Exception:
            self.start_again()
            raise
        self.start_again()
        result = self.model._call_impl(*args, **kwargs)
        self.give_up(summary(str(failure)))
        return result

    def start_again(self) -> None:
        """After an error before anything was captured: Dynamo would skip the code that raised it from now on."""
        if not self.captures:
            self.start()

    def entry(self) -> Callable[..., Any]:
        """The function that Dynamo has captured, or captures when it is called."""
        return self._captured

    def version(self) -> str:
        """Dynamo's guards do not watch hooks: a name for the set of them, which is guarded, makes it trace again."""
        hooks = tuple(chain.from_iterable(self._hooks))
        return self._versions.setdefault(hooks, str(len(self._versions)))

    def give_up(self, cause: str) -> None:
        """Run the model as it was from now on."""
        self._given_up = True
        self.report.breaks = (*self.report.breaks, cause)
        name = type(self.model).__name__
        warnings.warn(f"addnorm.fuse could not capture {name}, which runs as it was: {cause}", stacklevel=6)

    def look_over(self) -> None:
        """Note the model's modules as they are now, and where their hooks are kept."""
        self._hooks = hook_dicts(self.model.modules())
        self.callers.look_over()

    def rewrite(self, module: GraphModule, _: list[Any]) -> Callable[..., Any]:
        """Dynamo's backend: the captured piece, ready to run."""
        self.look_over()
        self.captures += 1
        piece = Piece(module, self.callers, self.report.record)
        self.report.drawn |= piece.has_drawn
        if not piece.closed:
            self._open.append(piece)
        return self.noted(lambda *args: piece.run(*args))  # which becomes another when the piece is closed

    def noted(self, piece: Callable[..., Any]) -> Callable[..., Any]:
        """A captured piece that leaves word when it runs."""

        def run(*args: Any) -> Any:
            self._ran = True
            return piece(*args)

        return run

    def settle(self) -> None:
        """After a pass: what was tried and agrees is trusted from now on."""
        self.callers.start()
        self._open = [piece for piece in self._open if not piece.close()]
        if self._first:
            new = Counter(counters["graph_break"]) - self._breaks
            self.report.breaks = (*self.report.breaks, *(summary(reason) for reason in new))
            self.complete()

    def why_unseen(self, name: str) -> str:
        if any(name.startswith(path) for path in self._nested.encoders) and not self.captures:
            return REASON
        if self._given_up or not self.captures:
            return "the model was not captured"
        return "not in the captured code: not called, or written in a way that is not recognised"


def traced(model: nn.Module) -> Callable[..., Any]:
    """The function that Dynamo traces, with a code object and a name of its own: Dynamo keeps its cache by the one, and
    by the other which numbers have varied. So a model's neighbour, with another eps, say, leaves no trace in it."""

    def call(version: str, *args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    code = call.__code__.replace(co_name=f"fused_call_{next(NUMBERS)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def isolation() -> dict[str, Any]:
    """Options of newer torch: no cache shared with other compiled functions, and room for many variants."""
    wanted = {"isolate_recompiles": True, "recompile_limit": 64}
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in wanted.items() if name in known}


def summary(reason: str) -> str:
    """The first lines of Dynamo's explanation, as one."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return " ".join(lines[:3])
