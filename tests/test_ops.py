"""The operators: schemas, fake kernels and autograd as torch.library wants them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import ops
from addnorm.backends.native import EXTENSION
from addnorm.call import OPERANDS, Call, describe

from .support.calls import routes
from .support.cases import BF16, EVERYTHING, F16, F32, F64, Case, build, options

NAMED = [param for param in routes() if param.id != "plain"]
named = pytest.mark.parametrize("backend", NAMED)
CASES = [
    Case(),
    Case(norm="rms", bias=False, shape=(7,)),
    Case(residual=None, weight=False, bias=False),
    Case(x=BF16, residual=F32, layout="transposed"),
    Case(x=F16, residual=F16, options=options(out_dtype=F32, stream_dtype=F64), branch_scale="0-d"),
    EVERYTHING,
    replace(EVERYTHING, norm="rms", x=F64, residual=F32, branch_scale="0-d", layout="padded"),
    Case(shape=(0, 5)),
    Case(shape=(2, 1)),
]
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def call_arguments(case: Case, *, requires_grad: bool = False) -> list[Any]:
    call = describe(**build(case).arguments)
    if requires_grad:
        leaves = {k: t.detach().requires_grad_() for k, t in call.operands.items() if t is not None}
        call = replace(call, **leaves)
    return [getattr(call, f.name) for f in fields(Call)]


def backward_arguments(case: Case, backend: str, needs: list[bool]) -> list[Any]:
    problem = build(case)
    call = describe(**problem.arguments)
    forward = [getattr(call, f.name) for f in fields(Call)]
    _, z, stats = torch.ops.addnorm.forward(*forward, True, True, backend)
    kept = [call.weight, call.branch_bias, call.branch_scale, call.row_scale, call.seed]
    settings = [call.norm, call.eps, call.residual_scale, call.dropout_p, call.weight_offset]
    dtypes = [call.x.dtype, (call.x if call.residual is None else call.residual).dtype]
    dtypes.append(call.out_dtype if call.bias is None else call.bias.dtype)
    return [problem.dy, problem.ds, z, stats, call.x, *kept, *settings, *dtypes, needs]


@pytest.mark.parametrize("case", CASES, ids=str)
@named
def test_opcheck_forward(backend: str, case: Case) -> None:
    op = torch.ops.addnorm.forward.default
    torch.library.opcheck(op, (*call_arguments(case, requires_grad=True), True, True, backend), test_utils=TESTS)
    for keep_stream in (True, False):
        arguments = (*call_arguments(case), keep_stream, False, backend)
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("case", CASES, ids=str)
@named
def test_opcheck_backward(backend: str, case: Case) -> None:
    call = describe(**build(case).arguments)
    op = torch.ops.addnorm.backward.default
    there = [t is not None for t in call.operands.values()]
    for needs in (there, [n and i % 2 == 0 for i, n in enumerate(there)]):
        torch.library.opcheck(op, (*backward_arguments(case, backend, needs), backend), test_utils=TESTS)


@pytest.mark.parametrize("case", CASES, ids=str)
@named
def test_opcheck_forward_out(backend: str, case: Case) -> None:
    arguments = call_arguments(case)
    x, out_dtype, stream_dtype = arguments[0], *arguments[-2:]
    y, z = torch.empty(x.shape, dtype=out_dtype), torch.empty(x.shape, dtype=stream_dtype)
    for stream_out in (z, None):
        torch.library.opcheck(
            torch.ops.addnorm.forward_out.default,
            (*arguments, backend),
            {"out": y, "stream_out": stream_out},
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("case", [*CASES, Case(shape=(3, 0))], ids=str)
@named
def test_results_are_contiguous_and_as_the_fake_says(backend: str, case: Case) -> None:
    from torch._subclasses import FakeTensorMode

    arguments = (*call_arguments(case), True, True, backend)
    real = torch.ops.addnorm.forward(*arguments)
    with FakeTensorMode() as mode:
        fake = torch.ops.addnorm.forward(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments])
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert one.is_contiguous()


@named
def test_results_do_not_alias_arguments(backend: str) -> None:
    """Where z is x itself, the stream is still a tensor of its own."""
    arguments = call_arguments(Case(residual=None))
    _, z, _ = torch.ops.addnorm.forward(*arguments, True, False, backend)
    assert z.data_ptr() != arguments[0].data_ptr()
    assert torch.equal(z, arguments[0])


@named
def test_backward_has_no_derivative_of_its_own_and_says_so(backend: str) -> None:
    arguments = backward_arguments(Case(), backend, [True] + [False] * (len(OPERANDS) - 1))
    arguments[0] = arguments[0].requires_grad_()
    dx = torch.ops.addnorm.backward(*arguments, backend)[0]
    with pytest.raises(RuntimeError, match="create_graph=True"):
        dx.sum().backward()


@named
def test_forward_without_what_the_backward_needs_says_so(backend: str) -> None:
    with pytest.raises(RuntimeError, match="keep_stats"):
        torch.ops.addnorm.forward(*call_arguments(Case(), requires_grad=True), False, False, backend)


@named
def test_statistics_do_not_require_grad(backend: str) -> None:
    y, z, stats = torch.ops.addnorm.forward(*call_arguments(Case(), requires_grad=True), True, True, backend)
    assert (y.requires_grad, z.requires_grad, stats.requires_grad) == (True, True, False)


def test_schemas_list_the_fields_in_their_order() -> None:
    schema = torch.ops.addnorm.forward.default._schema
    assert [a.name for a in schema.arguments] == [*ops.CALL_FIELDS, "keep_stream", "keep_stats", "backend"]
    schema = torch.ops.addnorm.backward.default._schema
    assert [a.name for a in schema.arguments] == [*ops.GRADIENT_FIELDS, "backend"]
    assert [r.name for r in schema.returns] == [f"d{name}" for name in OPERANDS]


@pytest.mark.parametrize("case", [*CASES, Case(shape=(3, 0))], ids=str)
def test_meta_tensors(case: Case) -> None:
    from addnorm import add_norm_stream

    problem = build(case)
    real = add_norm_stream(**problem.arguments)
    meta = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in problem.arguments.items()}
    for one, other in zip(real, add_norm_stream(**meta), strict=True):
        assert other.device.type == "meta"
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.skipif(EXTENSION is None, reason="the C++ extension is not built")
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("norm", "dyt", "no kernel for norm='dyt'"),
        ("dropout_p", 0.5, "dropout needs a seed"),
        ("x", torch.ones(2, 3, dtype=torch.int32), "no kernel for Int"),
        ("x", torch.tensor(1.0), "no dimension"),
    ],
)
def test_an_operator_called_by_hand_refuses_what_would_end_the_process(name: str, value: Any, reason: str) -> None:
    given = dict(zip([f.name for f in fields(Call)], call_arguments(Case()), strict=True))
    with pytest.raises(RuntimeError, match=reason):
        torch.ops.addnorm.forward(*(given | {name: value}).values(), False, False, "cpu")
