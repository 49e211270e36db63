"""`fuse`: Add & Norm of an existing model, fused in place, and undone."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..call import lookup
from .capture import FusedCall
from .report import Report

MODES = {"eager": FusedCall}
DEFAULT = "eager"
PLACE = "_compiled_call_impl"  # what torch.nn.Module.__call__ calls instead of forward, where it is set


class Handle:
    """A fused model: its report, and the way back. As a context manager it undoes the fusing at the end."""

    def __init__(self, model: nn.Module, call: FusedCall) -> None:
        self.model = model
        self._call = call

    @property
    def report(self) -> Report:
        """Every norm call: what was folded in, or why not. Complete after the first call of the model."""
        return self._call.report

    def undo(self) -> None:
        """Give the model its own call back. Harmless where that was done before."""
        if self.model.__dict__.get(PLACE) is self._call:
            del self.model.__dict__[PLACE]

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"{type(self.model).__name__}: {self.report}"


def fuse(
    model: nn.Module, *, mode: str = "auto", example: Tensor | tuple[Any, ...] | dict[str, Any] | None = None
) -> Handle:
    """Run every Add & Norm of a model as one fused operation. The model is changed in place, for all its callers.

    ``LayerNorm`` and ``RMSNorm``, as modules, functions or written out, after a sum of two tensors with what the branch
    has before it (a Linear's bias, dropout, LayerScale, stochastic depth), post-norm or pre-norm; a norm without a sum
    is one fused norm. The model's code is captured
    (by Dynamo, without compiling), these operations become calls of `add_norm` or `add_norm_stream`, and the rest
    runs as it was, operation by operation. Each site is compared with the original on the first real inputs, dropout
    left out; one that is further from float64 than twice the original's error is left alone. Dropout draws other
    random numbers than torch's, at the same rate, and repeats under ``torch.manual_seed``.

    Parameters, ``state_dict``, hooks, ``train()`` and ``eval()``, ``to()``, copies and saved files (which are of the
    plain model) and gradients stay as they are. Captured again are new hooks, dtypes, train or eval, grad or not;
    not new lengths. A model called inside another ``torch.compile`` runs unfused there: who compiles gives Inductor an
    `addnorm.FusePass` instead.

    Args:
        model: Any module that is called as ``model(...)``.
        mode: ``"eager"``, or ``"auto"``, which chooses it.
        example: Inputs (a tensor, a tuple of arguments or a dict of keyword arguments) to run the model on at once,
            without gradients, so that the report is complete; torch's random state is kept.

    Returns:
        A `Handle`: ``handle.report`` tells of every norm call, ``handle.undo()`` or the end of
        ``with fuse(model):`` gives the original back. A model that is fused already gives the handle it has.

    Raises:
        TypeError: model is no module.
        ValueError: an unknown mode, or a model that has been compiled.

    Warns:
        UserWarning: after the first call, if nothing could be fused; says why.

    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> handle = fuse(layer, example=torch.randn(2, 5, 8))
    >>> handle.report.fused
    2
    >>> handle.undo()
    """
    modes = {"auto": MODES[DEFAULT], **MODES}
    capture = lookup("mode", mode, modes)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    present = model.__dict__.get(PLACE)
    if isinstance(present, FusedCall):
        return present.handle
    if present is not None or isinstance(model, torch._dynamo.OptimizedModule):
        raise ValueError("model has been compiled: give the plain model, which is then run without compiling")
    call = capture(model)
    call.handle = Handle(model, call)
    model.__dict__[PLACE] = call
    if example is not None:
        try_out(model, example)
    return call.handle


def try_out(model: nn.Module, example: Tensor | tuple[Any, ...] | dict[str, Any]) -> None:
    """Run the model once, leaving torch's random state as it was."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        if isinstance(example, dict):
            model(**example)
        else:
            model(*(example if isinstance(example, tuple) else (example,)))
