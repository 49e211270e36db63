"""Mode "eager": what Dynamo traces of a model is rewritten, tried once, then run operation by operation."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from .arrays import copy_quietly
from .base import FusedCall
from .callers import Callers
from .captured import Captured, Unguarded
from .fast_path import REASON, NestedEncoders
from .piece import Piece

NOBODY: AbstractContextManager[Any] = nullcontext()


class EagerCall(FusedCall):
    """The captured graph, its sites fused, run operation by operation; see `addnorm.fuse` for what it promises."""

    mode = "eager"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.captures = 0
        self._given_up = False  # whether the model can not be captured
        self._turn = threading.RLock()  # whose turn it is to capture: a model may call itself
        self._open: list[Piece] = []
        self.callers = Callers(model)
        self._breaks: Counter[str] | None = None  # Dynamo's count of all models' before the first pass
        self._nested = NestedEncoders(model)
        self.look_over()
        self.start()

    def start(self) -> None:
        self._captured = Captured(self.model, self.rewrite)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if self._given_up or self._nested.take_over() or self._unguarded.loses_hooks():
            result = self.model._call_impl(*args, **kwargs)
            if not self.report.complete:
                self.settle()
            return result
        version = self._unguarded.version()
        with NOBODY if version in self.entry().done else self._turn:  # others wait for what one captures
            result = self.run(version, *args, **kwargs)
            if self._open or not self.report.complete:
                self.settle()
        return result

    def run(self, version: Hashable, *args: Any, **kwargs: Any) -> Any:
        """The captured call; the model's own where Dynamo gives it up, so that its own errors are raised as ever."""
        if self._given_up:  # by the thread before
            return self.model._call_impl(*args, **kwargs)
        self.callers.now.start()
        if self._breaks is None:
            self._breaks = Counter(counters["graph_break"])
        try:
            return self.entry()(version, *args, **kwargs)
        except TorchDynamoException as error:
            if self.callers.now.captured:  # from the start again would do twice what the first part has done
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

    def entry(self) -> Captured:
        """What runs: captured, or captured when it is called."""
        return self._captured

    def give_up(self, cause: str) -> None:
        """Run the model as it was from now on."""
        with self.lock:
            if self._given_up:
                return
            self._given_up = True
            self.report.breaks = (*self.report.breaks, cause)
        name = type(self.model).__name__
        warnings.warn(f"addnorm.fuse could not capture {name}, which runs as it was: {cause}", stacklevel=6)

    def look_over(self) -> None:
        """Note the model's modules as they are now."""
        self._unguarded = Unguarded(self.model)
        self.callers.look_over()

    def rewrite(self, module: GraphModule, _: list[Any]) -> Callable[..., Any]:
        """Dynamo's backend: the captured piece, ready to run."""
        self.look_over()
        copy_quietly(module.graph)
        self.captures += 1
        piece = Piece(module, self.callers, self.report)
        self.report.drawn |= piece.has_drawn
        if not piece.closed:
            self._open.append(piece)
        return self.noted(piece.run)

    def noted(self, piece: Callable[..., Any]) -> Callable[..., Any]:
        """A captured piece that leaves word when it runs, and does not hold the model."""
        now = self.callers.now

        def run(*args: Any) -> Any:
            now.captured = True
            return piece(*args)

        return run

    def settle(self) -> None:
        """After a pass: what was tried and agrees is trusted from now on."""
        with self.lock:
            for piece in [*self._open]:
                if piece.close():
                    self._open.remove(piece)
            if not self.report.complete:
                if self._breaks is not None:  # it is, where nothing was captured
                    new = Counter(counters["graph_break"]) - self._breaks
                    self.report.breaks = (*self.report.breaks, *(summary(reason) for reason in new))
                self.complete()

    def why_unseen(self, name: str) -> str:
        if any(name.startswith(path) for path in self._nested.encoders) and not self.captures:
            return REASON
        if self._unguarded.loses_hooks() and not self.captures:
            return "a module inside the model has a backward hook, with which it runs as it was"
        if self._given_up or not self.captures:
            return "the model was not captured"
        if self.report.breaks:
            return "not in the captured code: in a part that could not be captured (see below), or not called"
        return "not in the captured code: not called, or written in a way that is not recognised"


def summary(reason: str) -> str:
    """The first lines of Dynamo's explanation, as one."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return " ".join(lines[:3])
