"""The reference: its two halves agree, to the second order, and its formulas with those of the tests' oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from addnorm import reference
from addnorm.call import OPERANDS, Call, Gradient, describe

from .support.cases import EVERYTHING, F64, Case, build, options
from .support.oracle import Problem, exact
from .support.tolerance import agree

CASES = [
    replace(EVERYTHING, x=F64, residual=F64, norm=norm, shape=(2, 3, 5), row_scale=(2, 3), branch_scale=scale)
    for norm in ("layer", "rms")
    for scale in ("vector", "0-d", "zero")
]
PLAIN = Case(shape=(2, 4), x=F64, residual=F64, branch_scale="vector", row_scale=(2,), options=options(dropout_p=0.3))


def both(case: Case) -> tuple[Call, Problem]:
    problem = build(case)
    return describe(**problem.arguments), problem


def gradient(call: Call, dy: Tensor, ds: Tensor) -> Gradient:
    with torch.no_grad():
        _, z, stats = reference.forward(call)
    return Gradient(
        dy=dy, ds=ds, z=z, stats=stats, x=call.x, weight=call.weight, branch_bias=call.branch_bias,
        branch_scale=call.branch_scale, row_scale=call.row_scale, seed=call.seed, norm=call.norm, eps=call.eps,
        residual_scale=call.residual_scale, dropout_p=call.dropout_p, weight_offset=call.weight_offset,
        x_dtype=F64, residual_dtype=F64, bias_dtype=F64, needs=[t is not None for t in call.operands.values()],
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_formula(case: Case) -> None:
    call, problem = both(case)
    assert problem.dy is not None
    assert problem.ds is not None
    want = exact(problem)
    y, z, _ = reference.forward(call)
    got = {"y": y, "stream": z, **reference.backward(gradient(call, problem.dy, problem.ds))}
    for name, result in got.items():
        assert result is not None
        agree(name, result, want.results[name], want.allowed[name])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_is_the_derivative_of_forward(case: Case) -> None:
    call, problem = both(case)
    leaves = {name: t.detach().requires_grad_() for name, t in call.operands.items() if t is not None}
    y, z, _ = reference.forward(replace(call, **leaves))
    assert problem.dy is not None
    assert problem.ds is not None
    want = torch.autograd.grad([y, z], list(leaves.values()), [problem.dy, problem.ds])
    got = reference.backward(gradient(call, problem.dy, problem.ds))
    for name, theirs in zip(leaves, want, strict=True):
        torch.testing.assert_close(got[name], theirs, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_forward_differentiates_twice(norm: str) -> None:
    call, _ = both(replace(PLAIN, norm=norm))
    leaves = [t.detach().requires_grad_() for t in call.operands.values() if t is not None]
    names = [name for name, t in call.operands.items() if t is not None]

    def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, z, _ = reference.forward(replace(call, **dict(zip(names, tensors, strict=True))))
        return y, z

    assert torch.autograd.gradcheck(forward, leaves)
    assert torch.autograd.gradgradcheck(forward, leaves)


def test_only_what_is_needed_is_there() -> None:
    call, problem = both(CASES[0])
    assert problem.dy is not None
    assert problem.ds is not None
    whole = gradient(call, problem.dy, problem.ds)
    for i, name in enumerate(OPERANDS):
        grads = reference.backward(replace(whole, needs=[i == j for j in range(len(OPERANDS))]))
        assert [k for k, v in grads.items() if v is not None] == [name]


def test_zero_gradients_where_only_the_stream_was_used() -> None:
    call, problem = both(CASES[0])
    assert problem.ds is not None
    grads = reference.backward(replace(gradient(call, problem.ds, problem.ds), dy=None))
    assert grads["weight"] is not None
    assert grads["bias"] is not None
    assert not grads["weight"].any()
    assert not grads["bias"].any()


def test_dropping_keeps_nan() -> None:
    call = describe(torch.full((64,), torch.nan), dropout_p=0.5, seed=1)
    assert reference.stream(call).isnan().all()
