"""The public calls: defaults, results, seeds and options, by any route."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from addnorm import add_norm, add_norm_stream, explain_dispatch
from addnorm.backends import BACKENDS

from .support.acceptance import labelled
from .support.calls import routes, run
from .support.cases import DTYPES, LAYOUTS, Case, build, options
from .support.oracle import as_written, exact
from .support.tolerance import check, same_bits

D = 12
every_route = pytest.mark.parametrize("backend", routes())


def data(*shape: int) -> Tensor:
    return torch.randn(*shape or (4, D))


SCALES = ("", "number", "0-d", "vector", "zero")
cases = st.builds(
    lambda **parts: Case(**parts),
    shape=st.tuples(st.integers(0, 5), st.integers(1, 4), st.sampled_from([1, 2, 5, 8, 16, 24, 31, 40, 65])),
    norm=st.sampled_from(["layer", "rms"]),
    x=st.sampled_from(DTYPES),
    residual=st.sampled_from([None, *DTYPES]),
    parameters=st.sampled_from([None, *DTYPES]),
    weight=st.booleans(),
    bias=st.booleans(),
    branch_bias=st.booleans(),
    branch_scale=st.sampled_from(SCALES),
    row_scale=st.sampled_from([None, (), (1,), (1, 1)]),
    mean=st.sampled_from([0.0, 5.0]),
    layout=st.sampled_from([name for name in LAYOUTS if name not in ("expanded", "windows")]),
    grads=st.sampled_from(["both", "y", "stream"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "dropout_p": st.sampled_from([0.0, 0.1, 0.5, 0.95]),
            "training": st.booleans(),
            "seed": st.integers(-(2**63), 2**63 - 1),
            "eps": st.sampled_from([1e-5, 1e-3, 1.0]),
            "residual_scale": st.sampled_from([-2.0, 0.0, 0.3]),
            "out_dtype": st.sampled_from([None, *DTYPES]),
            "stream_dtype": st.sampled_from([None, *DTYPES]),
        },
    ).map(lambda values: options(**values)),
)


@every_route
@given(case=cases)
def test_any_call_is_right(backend: str | None, case: Case) -> None:
    problem = build(case)
    got = run(problem, backend)
    with labelled(case):
        check(problem, exact(problem), got, as_written(problem))


@every_route
def test_defaults(backend: str | None) -> None:
    x, residual = data(), data()
    y = add_norm(x, residual, backend=backend)
    spelled = add_norm(
        x, residual, None, None, norm="layer", eps=1e-5, branch_bias=None, branch_scale=None, row_scale=None,
        residual_scale=1.0, dropout_p=0.0, training=True, seed=None, weight_offset=0.0, out_dtype=None,
        stream_dtype=None, out=None, backend=backend,
    )  # fmt: skip
    same_bits("y", y, spelled)
    torch.testing.assert_close(y, torch.nn.functional.layer_norm(x + residual, (D,)))


def test_both_calls_have_the_designed_arguments() -> None:
    common = [
        "x", "residual", "weight", "bias", "norm", "eps", "branch_bias", "branch_scale", "row_scale", "residual_scale",
        "dropout_p", "training", "seed", "weight_offset", "out_dtype", "stream_dtype", "out",
    ]  # fmt: skip
    for function, names in ((add_norm, [*common, "backend"]), (add_norm_stream, [*common, "stream_out", "backend"])):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == names
        assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[4:])


@every_route
def test_y_is_the_same_with_and_without_the_stream(backend: str | None) -> None:
    for requires_grad in (False, True):
        x, residual = data().requires_grad_(requires_grad), data()
        y, _ = add_norm_stream(x, residual, backend=backend)
        same_bits("y", add_norm(x, residual, backend=backend).detach(), y.detach())


@every_route
@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("residual", [None, *DTYPES])
def test_result_dtypes(backend: str | None, x: torch.dtype, residual: torch.dtype | None) -> None:
    a, b = data().to(x), None if residual is None else data().to(residual)
    want = x if b is None else torch.result_type(a, b)
    y, z = add_norm_stream(a, b, torch.ones(D, dtype=torch.float64), backend=backend)
    assert (y.dtype, z.dtype) == (want, want)
    y, z = add_norm_stream(a, b, out_dtype=torch.float16, stream_dtype=torch.bfloat16, backend=backend)
    assert (y.dtype, z.dtype) == (torch.float16, torch.bfloat16)


@every_route
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_contiguous(backend: str | None, layout: str) -> None:
    x = LAYOUTS[layout](data(2, 3, D))
    for t in add_norm_stream(x, x, backend=backend):
        assert t.is_contiguous()
        assert t.shape == x.shape


@every_route
def test_the_stream_is_no_view_of_an_argument(backend: str | None) -> None:
    x = data()
    y, z = add_norm_stream(x, backend=backend)
    z.zero_()
    y.zero_()
    assert x.all()


@every_route
def test_out_is_what_is_returned(backend: str | None) -> None:
    x, out, stream_out = data(), data(), data()
    assert add_norm(x, out=out, backend=backend) is out
    y, z = add_norm_stream(x, out=out, stream_out=stream_out, backend=backend)
    assert y is out
    assert z is stream_out
    y, z = add_norm_stream(x, stream_out=stream_out, backend=backend)
    assert z is stream_out
    same_bits("y beside stream_out", y, out)
    y, z = add_norm_stream(x, out=out, backend=backend)
    same_bits("stream beside out", z, stream_out)


@every_route
def test_out_may_be_x_with_another_stride_where_there_is_one_row(backend: str | None) -> None:
    x = data().reshape(-1)[:D].reshape(1, D)
    y = add_norm(x, backend=backend)
    same_bits("y", add_norm(x, out=x.as_strided((1, D), (7, 1)), backend=backend), y)


@every_route
def test_out_under_no_grad_takes_parameters(backend: str | None) -> None:
    weight, out = torch.ones(D, requires_grad=True), data()
    with torch.no_grad():
        add_norm(data(), None, weight, out=out, backend=backend)
    assert not out.requires_grad


@every_route
def test_out_marks_the_tensor_as_changed(backend: str | None) -> None:
    """Autograd notices that a saved tensor was written through out=."""
    a, x = data().requires_grad_(), data()
    b = a * x
    with torch.no_grad():
        add_norm(data(), out=x, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        b.sum().backward()


def test_every_route_draws_the_same_seed_and_mask() -> None:
    x = torch.ones(6, 50)
    streams = []
    for param in routes():
        if not param.marks[0].args[0]:
            torch.manual_seed(21)
            streams.append(add_norm_stream(x, dropout_p=0.4, backend=param.values[0])[1])
            streams.append(torch.rand(3))  # the generator is left at one place
    for i in range(2, len(streams)):
        same_bits("mask or next draw", streams[i], streams[i % 2])


@every_route
def test_seed_tensor_is_read_when_called(backend: str | None) -> None:
    seed = torch.tensor(4)
    first = add_norm_stream(torch.ones(3, 40), dropout_p=0.5, seed=seed, backend=backend)[1]
    seed.add_(1)
    assert not torch.equal(add_norm_stream(torch.ones(3, 40), dropout_p=0.5, seed=seed, backend=backend)[1], first)


@every_route
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_rate_and_scale(backend: str | None, p: float) -> None:
    x = torch.ones(300, 1000)
    _, z = add_norm_stream(x, dropout_p=p, seed=8, backend=backend)
    kept = z != 0
    rate = round(65536 * p) / 65536
    assert abs(1 - kept.double().mean().item() - rate) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert torch.equal(z[kept].unique(), torch.tensor([1 / (1 - p)]))


@every_route
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_numbers_of_every_kind_are_taken(backend: str | None, norm: str) -> None:
    x, weight = data(), torch.ones(D)
    whole = {"eps": 1, "branch_scale": 2, "residual_scale": 3, "weight_offset": 1, "dropout_p": 0}
    real = {k: float(v) for k, v in whole.items()}
    same_bits(
        "y",
        add_norm(x, x, weight, norm=norm, backend=backend, **whole),
        add_norm(x, x, weight, norm=norm, backend=backend, **real),
    )


@every_route
def test_branch_scale_as_number_and_as_tensor(backend: str | None) -> None:
    x, residual = data(), data()
    number = add_norm(x, residual, branch_scale=0.3, backend=backend)
    for scale in (torch.tensor(0.3), torch.full((D,), 0.3)):
        same_bits("y", add_norm(x, residual, branch_scale=scale, backend=backend), number)


@every_route
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_branch_scale_beyond_float32_is_infinite(backend: str | None) -> None:
    assert add_norm_stream(torch.ones(2, 4), branch_scale=1e300, backend=backend)[1].isinf().all()


@every_route
def test_repeated_tensors(backend: str | None) -> None:
    """One tensor as x and residual, one as all parameters: gradients add up."""
    x = data().double().requires_grad_()
    w = data(D).double().requires_grad_()

    def call(x: Tensor, w: Tensor) -> Any:
        return add_norm_stream(x, x, w, w, branch_bias=w, branch_scale=w, backend=backend)

    assert torch.autograd.gradcheck(call, (x, w))


@every_route
def test_subclasses_and_parameters(backend: str | None) -> None:
    p = torch.nn.Parameter(data())
    y = add_norm(p, torch.nn.Buffer(data()), torch.nn.Parameter(torch.ones(D)), backend=backend)
    y.sum().backward()
    assert type(y) is Tensor
    assert p.grad is not None


def test_modes_see_the_call() -> None:
    """A TorchDispatchMode sees the operator, whatever the plain call does otherwise."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Spy():
        add_norm(data(), data())
    assert any("addnorm" in name for name in seen)


def test_explain_dispatch_takes_the_call_s_arguments() -> None:
    shown = str(explain_dispatch(data(), data(), torch.ones(D), torch.zeros(D), norm="rms", dropout_p=0.1))
    assert shown.splitlines()[0].endswith("takes this call")
    assert all(name in shown for name in BACKENDS)
    with pytest.raises(ValueError, match="residual has shape"):
        explain_dispatch(data(), data(1, D))
    assert explain_dispatch(data(), backend="eager").chosen == "eager"
    with pytest.raises(ValueError, match="can not take this call"):
        explain_dispatch(data(), norm="dyt", backend="cpu")
    for option in ("out", "epsilon"):
        with pytest.raises(TypeError, match=rf"explain_dispatch\(\) got an unexpected keyword argument '{option}'"):
            explain_dispatch(data(), **{option: None})
