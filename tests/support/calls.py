"""Carrying out a problem by one of the library's routes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import add_norm_stream
from addnorm.backends import BACKENDS, native
from addnorm.call import describe

from .oracle import OPERANDS, Problem

PLAIN = None  # the public call as users write it, without backend=: the short C++ way where the extension is built


def routes() -> list[Any]:
    """What `backend=` can be on CPU tensors, for pytest.mark.parametrize; what can not run is skipped and says why."""
    call = describe(torch.ones(1, 2))
    params = []
    for name, backend in BACKENDS.items():
        support = backend.supports(call)
        params.append(pytest.param(name, id=name, marks=pytest.mark.skipif(not support, reason=support.reason)))
    no_short_way = pytest.mark.skipif(native.EXTENSION is None, reason=native.REASON)
    return [*params, pytest.param(PLAIN, id="plain", marks=no_short_way)]


def run(problem: Problem, backend: str | None, **options: Any) -> dict[str, Tensor]:
    """ "y", "stream" and the gradients of all tensors, if any gradient arrives."""
    arguments = fresh(problem, requires_grad=problem.dy is not None or problem.ds is not None)
    y, stream = add_norm_stream(**arguments, backend=backend, **options)
    pairs = [(t, g) for t, g in ((y, problem.dy), (stream, problem.ds)) if g is not None]
    if pairs:
        torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
    grads = {name: t.grad for name, t in arguments.items() if name in OPERANDS and isinstance(t, Tensor)}
    return {"y": y.detach(), "stream": stream.detach(), **{k: g for k, g in grads.items() if g is not None}}


def fresh(problem: Problem, *, requires_grad: bool = True) -> dict[str, Any]:
    """The arguments with new leaves, of the same strides, over the same memory."""
    return {
        name: value.detach().requires_grad_(requires_grad) if name in OPERANDS and isinstance(value, Tensor) else value
        for name, value in problem.arguments.items()
    }


def forward_only(problem: Problem) -> Problem:
    return replace(problem, dy=None, ds=None)
