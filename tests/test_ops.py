"""The operators: schemas, fake kernels and autograd as torch.library wants them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from addnorm.arguments import BACKWARD_ARGUMENTS, FORWARD_ARGUMENTS
from addnorm.backends import BACKENDS, Support
from addnorm.backends.native import EXTENSION
from addnorm.call import CALL_TENSORS, GRADIENT_TENSORS, OPERANDS, Call, Gradient, describe

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


def call_of(case: Case, *, requires_grad: bool = False) -> Call:
    call = describe(**build(case).arguments)
    if requires_grad:
        leaves = {k: t.detach().requires_grad_() for k, t in call.operands.items() if t is not None}
        call = replace(call, **leaves)
    return call


def forward_arguments(call: Call, keep_stream: bool, keep_stats: bool, backend: str) -> list[Any]:
    given = {f.name: getattr(call, f.name) for f in fields(Call)}
    switches = {"keep_stream": keep_stream, "keep_stats": keep_stats, "backend": backend}
    return [(given | switches)[name] for name in FORWARD_ARGUMENTS]


def backward_arguments(case: Case, backend: str, needs: list[bool]) -> list[Any]:
    problem = build(case)
    call = describe(**problem.arguments)
    _, z, stats = torch.ops.addnorm.forward(*forward_arguments(call, True, True, backend))
    given = {f.name: getattr(call, f.name, None) for f in fields(Gradient)}
    given |= {"dy": problem.dy, "ds": problem.ds, "z": z, "stats": stats, "needs": needs, "x_dtype": call.x.dtype}
    given["residual_dtype"] = (call.x if call.residual is None else call.residual).dtype
    given["bias_dtype"] = call.out_dtype if call.bias is None else call.bias.dtype
    return [*given.values(), backend]


@pytest.mark.parametrize("case", CASES, ids=str)
@named
def test_opcheck_forward(backend: str, case: Case) -> None:
    op = torch.ops.addnorm.forward.default
    recorded = forward_arguments(call_of(case, requires_grad=True), True, True, backend)
    torch.library.opcheck(op, tuple(recorded), test_utils=TESTS)
    for keep_stream in (True, False):
        arguments = tuple(forward_arguments(call_of(case), keep_stream, False, backend))
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("case", CASES, ids=str)
@named
def test_opcheck_backward(backend: str, case: Case) -> None:
    call = describe(**build(case).arguments)
    op = torch.ops.addnorm.backward.default
    there = [t is not None for t in call.operands.values()]
    for needs in (there, [n and i % 2 == 0 for i, n in enumerate(there)]):
        torch.library.opcheck(op, tuple(backward_arguments(case, backend, needs)), test_utils=TESTS)


@pytest.mark.parametrize("case", CASES, ids=str)
@named
def test_opcheck_forward_out(backend: str, case: Case) -> None:
    call = call_of(case)
    arguments = [getattr(call, f.name) for f in fields(Call)]
    y, z = torch.empty(call.x.shape, dtype=call.out_dtype), torch.empty(call.x.shape, dtype=call.stream_dtype)
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

    arguments = forward_arguments(call_of(case), True, True, backend)
    real = torch.ops.addnorm.forward(*arguments)
    with FakeTensorMode() as mode:
        fake = torch.ops.addnorm.forward(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments])
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert one.is_contiguous()


@named
def test_results_do_not_alias_arguments(backend: str) -> None:
    """Where z is x itself, the stream is still a tensor of its own."""
    arguments = forward_arguments(call_of(Case(residual=None)), True, False, backend)
    _, z, _ = torch.ops.addnorm.forward(*arguments)
    assert z.data_ptr() != arguments[0].data_ptr()
    assert torch.equal(z, arguments[0])


@named
def test_gradients_alias_neither_arguments_nor_one_another(backend: str) -> None:
    """Of a stream that is a plain sum, dx and dresidual are ds."""
    ds, weight = torch.randn(4, 8), torch.ones(8)
    for given in (ds, torch.randn(8, 4).T):
        needs = [True] * 4 + [False] * 3
        grads = torch.ops.addnorm.backward(None, given, ds, torch.ones(4, 3), needs, weight, backend=backend)
        places = [t.data_ptr() for t in (given, *grads[:4])]
        assert len(set(places)) == len(places)
        assert all(t.is_contiguous() for t in grads)
        assert torch.equal(grads[0], given)


@named
def test_backward_has_no_derivative_of_its_own_and_says_so(backend: str) -> None:
    arguments = backward_arguments(Case(), backend, [True] + [False] * (len(OPERANDS) - 1))
    arguments[0] = arguments[0].requires_grad_()
    dx = torch.ops.addnorm.backward(*arguments)[0]
    with pytest.raises(RuntimeError, match="create_graph=True"):
        dx.sum().backward()


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch.*")  # what dual tensors import
@pytest.mark.parametrize("step", ["forward", "forward_out", "backward"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
@named
def test_tangents_are_refused(backend: str, mode: Any, step: str) -> None:
    """Results without a tangent would mean that their derivative is zero."""
    call, written = call_of(Case()), {}
    if step == "forward":
        arguments = forward_arguments(call, True, True, backend)
    elif step == "backward":
        arguments = backward_arguments(Case(), backend, [True] * 4 + [False] * 3)
    else:
        arguments = [*(getattr(call, f.name) for f in fields(Call)), backend]
        written = {"out": torch.empty_like(call.x), "stream_out": None}
    operator = getattr(torch.ops.addnorm, step)
    for i in (0, 2):
        with (
            forward_ad.dual_level(),
            pytest.raises(NotImplementedError, match=r"differentiate addnorm\.add_norm"),
            mode(),
        ):
            operator(*arguments[:i], forward_ad.make_dual(arguments[i], arguments[i]), *arguments[i + 1 :], **written)


@named
def test_forward_without_what_the_backward_needs_says_so(backend: str) -> None:
    with pytest.raises(RuntimeError, match="keep_stats"):
        torch.ops.addnorm.forward(*forward_arguments(call_of(Case(), requires_grad=True), False, False, backend))


@named
def test_statistics_do_not_require_grad(backend: str) -> None:
    call = call_of(Case(), requires_grad=True)
    y, z, stats = torch.ops.addnorm.forward(*forward_arguments(call, True, True, backend))
    assert (y.requires_grad, z.requires_grad, stats.requires_grad) == (True, True, False)


def test_schemas_list_the_fields_in_their_order() -> None:
    schema = torch.ops.addnorm.forward.default._schema
    assert [a.name for a in schema.arguments] == list(FORWARD_ARGUMENTS)
    schema = torch.ops.addnorm.backward.default._schema
    assert [a.name for a in schema.arguments] == list(BACKWARD_ARGUMENTS)
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
    call = replace(call_of(Case()), **{name: value})
    with pytest.raises(RuntimeError, match=reason):
        torch.ops.addnorm.forward(*forward_arguments(call, False, False, "cpu"))


BACKENDS_HERE = ["eager", *(["cpu"] if EXTENSION is not None else [])]


WRONG_NUMBERS = [
    ("eps", -1.0, "eps must be a finite number >= 0, got -1"),
    ("eps", float("nan"), "eps must be a finite number >= 0, got nan"),
    ("dropout_p", 1.0, r"dropout_p must be in \[0, 1\), got 1"),
    ("dropout_p", -0.5, r"dropout_p must be in \[0, 1\), got -0.5"),
    ("residual_scale", float("inf"), "residual_scale must be a finite number, got inf"),
    ("weight_offset", float("-inf"), "weight_offset must be a finite number, got -inf"),
]
GRADIENT = {"dy": torch.ones(4, 8), "ds": None, "z": torch.ones(4, 8), "stats": torch.ones(4, 3),
            "needs": [True] * 4 + [False] * 3, "weight": torch.ones(8)}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize(("name", "value", "reason"), WRONG_NUMBERS)
def test_an_operator_refuses_numbers_as_add_norm_does(backend: str, name: str, value: float, reason: str) -> None:
    call = replace(call_of(Case(shape=(4, 8))), seed=torch.tensor(1), **{name: value})
    for op in (torch.ops.addnorm.forward, torch.ops.addnorm.forward.default):
        with pytest.raises(ValueError, match=reason):
            op(*forward_arguments(call, False, False, backend))
    if name == "eps":
        return  # which the backward has in its statistics
    for op in (torch.ops.addnorm.backward, torch.ops.addnorm.backward.default):
        with pytest.raises(ValueError, match=reason):
            op(**GRADIENT, seed=torch.tensor(1), backend=backend, **{name: value})


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("seed", [torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor(1, dtype=torch.int32)])
def test_an_operator_refuses_what_is_no_seed(backend: str, seed: Tensor) -> None:
    call = replace(call_of(Case(shape=(4, 8))), dropout_p=0.5, seed=seed)
    with pytest.raises(TypeError, match=r"seed must be one torch\.int64, got "):
        torch.ops.addnorm.forward(*forward_arguments(call, False, False, backend))
    with pytest.raises(TypeError, match=r"seed must be one torch\.int64, got "):
        torch.ops.addnorm.backward(**GRADIENT, dropout_p=0.5, seed=seed, backend=backend)


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("nonsense", "backend='nonsense' is unknown; there are: 'cpu', 'triton', 'eager'"),
     ("triton", "backend='triton' can not take this call: ")],
)  # fmt: skip
def test_an_operator_refuses_a_backend_that_can_not(monkeypatch: pytest.MonkeyPatch, backend: str, reason: str) -> None:
    monkeypatch.setattr(BACKENDS["triton"], "supports", lambda call: Support.no("a reason"))
    x = torch.ones(4, 8)
    with pytest.raises(ValueError, match=reason):
        torch.ops.addnorm.forward(x, x, None, None, False, False, backend=backend)
    with pytest.raises(ValueError, match=reason):
        torch.ops.addnorm.forward_out(x, x, None, None, backend=backend, out=torch.empty(4, 8), stream_out=None)
    with pytest.raises(ValueError, match=reason):
        torch.ops.addnorm.backward(**GRADIENT, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize(
    "changes", [{"residual": torch.ones(3, 8)}, {"weight": torch.ones(9)}, {"row_scale": torch.ones(1)}]
)
def test_a_forward_operator_refuses_what_does_not_fit(backend: str, changes: dict[str, Tensor]) -> None:
    call = replace(call_of(Case(shape=(4, 8))), **changes)
    with pytest.raises((RuntimeError, ValueError), match="shape"):
        torch.ops.addnorm.forward(*forward_arguments(call, False, False, backend))


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize(
    "changes",
    [{"dy": torch.ones(3, 8)}, {"ds": torch.ones(4, 9)}, {"dy": torch.ones(8, 3).T}, {"stats": torch.ones(3, 3)},
     {"stats": torch.ones(4, 1)}, {"stats": torch.ones(4, 3, dtype=torch.bfloat16)}, {"weight": torch.ones(7)}],
)  # fmt: skip
def test_a_backward_operator_refuses_what_does_not_fit(backend: str, changes: dict[str, Tensor]) -> None:
    for op in (torch.ops.addnorm.backward, torch.ops.addnorm.backward.default):
        op(**GRADIENT, backend=backend)
        with pytest.raises((RuntimeError, TypeError, ValueError), match=r"shape|tatistics|stats"):
            op(**GRADIENT | changes, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight": None}, "gradient is asked for of"),
        ({"needs": [False] * 5 + [True, False], "branch_scale": torch.ones(64)}, "gradient of a scale needs x"),
        ({"needs": [False] * 6 + [True], "row_scale": torch.ones(4)}, "gradient of a scale needs x"),
        ({"dropout_p": 0.5}, "dropout needs a seed"),
    ],
)
def test_a_backward_operator_says_what_it_lacks(backend: str, changes: dict[str, Any], reason: str) -> None:
    given = {"dy": torch.ones(4, 64), "ds": None, "z": torch.ones(4, 64), "stats": torch.ones(4, 3),
             "needs": [True] * 4 + [False] * 3, "weight": torch.ones(64)}  # fmt: skip
    for op in (torch.ops.addnorm.backward, torch.ops.addnorm.backward.default):
        with pytest.raises((RuntimeError, ValueError), match=reason):
            op(**given | changes, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
def test_a_backward_operator_of_no_gradient_is_refused(backend: str) -> None:
    given = (None, None, torch.ones(4, 64), torch.ones(4, 3), [True] * 2 + [False] * 5, None)
    for op in (torch.ops.addnorm.backward, torch.ops.addnorm._backward):
        with pytest.raises((RuntimeError, ValueError), match="neither dy nor ds"):
            op(*given, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS_HERE)
@pytest.mark.parametrize("name", ["out", "stream_out"])
def test_an_operator_refuses_a_place_that_does_not_fit(backend: str, name: str) -> None:
    x = torch.ones(4, 8)
    places = {"out": torch.empty(4, 8), "stream_out": torch.empty(4, 8)}
    torch.ops.addnorm.forward_out(x, x, None, None, backend=backend, **places)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        torch.ops.addnorm.forward_out(x, x, None, None, backend=backend, **places | {name: torch.empty(3, 8)})


@pytest.mark.parametrize("name", [*CALL_TENSORS, "out", "stream_out"])
def test_a_forward_operator_refuses_operands_on_two_devices(name: str) -> None:
    """Torch takes the fake kernel, whose results hold nothing, where any operand is on "meta"."""
    call = call_of(EVERYTHING)
    results = {"out": torch.empty(call.x.shape), "stream_out": torch.empty(call.x.shape)}
    given = {f.name: getattr(call, f.name) for f in fields(Call)} | results
    given[name] = given[name].to("meta")
    with pytest.raises(ValueError, match="all tensors must be on one device"):
        torch.ops.addnorm.forward_out(**given)
    if name in CALL_TENSORS:
        call = replace(call, **{name: given[name]})
        with pytest.raises(ValueError, match="all tensors must be on one device"):
            torch.ops.addnorm.forward(*forward_arguments(call, True, True, "eager"))


@pytest.mark.parametrize("name", GRADIENT_TENSORS)
def test_a_backward_operator_refuses_operands_on_two_devices(name: str) -> None:
    given = dict(zip(BACKWARD_ARGUMENTS, backward_arguments(EVERYTHING, "eager", [True] * 7), strict=True))
    given[name] = torch.empty_like(given["z"] if given[name] is None else given[name], device="meta")
    with pytest.raises(ValueError, match="all tensors must be on one device"):
        torch.ops.addnorm.backward(**given)
