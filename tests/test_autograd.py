"""Gradients to any order, in every mode of torch's autograd: right, or a clear error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from addnorm import AddNorm, add_norm, add_norm_stream, norms

from .support.calls import fresh, routes
from .support.cases import EVERYTHING, F64, Case, build, options
from .support.oracle import OPERANDS
from .support.tolerance import same_bits

# Forward mode loads decompositions that torch itself scripts.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
every_route = pytest.mark.parametrize("backend", routes())
both_norms = pytest.mark.parametrize("norm", ["layer", "rms"])
D = 6


def double(*shape: int) -> Tensor:
    return torch.randn(*shape or (2, D), dtype=F64)


def small(norm: str, **changes: Any) -> dict[str, Any]:
    """Every option, float64 and small enough for numerical derivatives."""
    given = {"x": F64, "residual": F64, "shape": (2, 2, D), "row_scale": (2, 1), "branch_bias": True, "norm": norm}
    given["options"] = options(dropout_p=0.3, residual_scale=1.5, weight_offset=1.0, eps=0.1)
    return fresh(build(Case(**{**given, "branch_scale": "vector", **changes})))


def as_function(arguments: dict[str, Any], backend: str | None) -> tuple[Any, list[Tensor]]:
    names = [name for name in OPERANDS if name in arguments]

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm_stream(**{**arguments, **dict(zip(names, tensors, strict=True))}, backend=backend)

    return function, [arguments[name] for name in names]


@every_route
@both_norms
@pytest.mark.parametrize("changes", [{}, {"branch_scale": "0-d"}, {"residual": None}, {"weight": False, "options": ()}])
def test_gradcheck_twice(backend: str | None, norm: str, changes: dict[str, Any]) -> None:
    function, tensors = as_function(small(norm, **changes), backend)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@every_route
def test_third_derivative(backend: str | None) -> None:
    def third(function: Any) -> Tensor:
        x = torch.linspace(-1, 2, D, dtype=F64).requires_grad_()
        value = function(x)
        for _ in range(3):
            (value,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
        return value.detach()

    def formula(x: Tensor) -> Tensor:  # torch's own layer_norm has another third derivative than its formula
        d = 2 * x - 2 * x.mean()
        return d * torch.rsqrt(d.square().mean() + 0.1)

    want = third(formula)
    torch.testing.assert_close(third(lambda x: add_norm(x, x, eps=0.1, backend=backend)), want)


@every_route
@both_norms
def test_gradient_penalty(backend: str | None, norm: str) -> None:
    """Double backward where the first gradient is used in the loss, in float32, as a training step has it."""

    def penalty(function: Any) -> list[Tensor]:
        torch.manual_seed(1)
        x, residual, weight = (torch.randn(shape).requires_grad_() for shape in ((4, D), (4, D), (D,)))
        y = function(x, residual, weight)
        grads = torch.autograd.grad(y.square().sum(), [x, weight], create_graph=True)
        sum(g.square().sum() for g in grads).backward()  # pyright: ignore[reportAttributeAccessIssue]
        return [t.grad for t in (x, residual, weight) if t.grad is not None]

    theirs = {"layer": torch.nn.functional.layer_norm, "rms": torch.nn.functional.rms_norm}[norm]
    want = penalty(lambda x, residual, weight: theirs(x + residual, (D,), weight, eps=0.1))
    got = penalty(lambda x, residual, weight: add_norm(x, residual, weight, norm=norm, eps=0.1, backend=backend))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@every_route
def test_batched_gradients(backend: str | None) -> None:
    """is_grads_batched and a vectorised Jacobian give what the loop gives."""
    function, tensors = as_function(small("layer"), backend)
    y, _ = function(*tensors)
    vectors = torch.randn(3, *y.shape, dtype=F64)
    batched = torch.autograd.grad(y, tensors, vectors, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        for a, b in zip(batched, torch.autograd.grad(y, tensors, vectors[i], retain_graph=True), strict=True):
            torch.testing.assert_close(a[i], b)

    def of_x(x: Tensor) -> Tensor:
        return add_norm(x, x, eps=0.1, backend=backend)

    jacobian = torch.autograd.functional.jacobian
    x = double()
    torch.testing.assert_close(jacobian(of_x, x, vectorize=True), jacobian(of_x, x))


FUNC = {
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).square().sum())(x),
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum()))(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).square().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),)),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](x.cos()),
}


@pytest.mark.parametrize("transform", FUNC)
@both_norms
def test_torch_func(transform: str, norm: str) -> None:
    theirs = {"layer": torch.nn.functional.layer_norm, "rms": torch.nn.functional.rms_norm}[norm]
    weight, x = double(D), double()
    got = FUNC[transform](lambda x: add_norm(x, 2 * x, weight, norm=norm, eps=0.1), x)
    want = FUNC[transform](lambda x: theirs(3 * x, (D,), weight, eps=0.1), x)
    torch.testing.assert_close(got, want)


@both_norms
@pytest.mark.parametrize("transform", FUNC)
def test_results_in_a_transform_are_contiguous_and_apart(transform: str, norm: str) -> None:
    """...as outside: `view` takes them, and the stream of a norm without a residual is not x itself."""

    def call(x: Tensor) -> Tensor:
        y, stream = add_norm_stream(x, norm=norm, eps=0.1)
        assert stream is not x
        alone = add_norm(x, norm=norm, eps=0.1)
        return sum(t.view(-1).view(x.shape) for t in (alone, y, stream))  # pyright: ignore[reportReturnType]

    FUNC[transform](call, double().t().contiguous().t())


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_torch_func_by_an_explicit_backend_is_refused(transform: str) -> None:
    params = [p for p in routes() if p.id not in ("eager", "plain") and not p.marks[0].args[0]]
    for param in params:
        with pytest.raises(ValueError, match=r"torch\.func.*'eager'"):
            FUNC[transform](lambda x, name=param.values[0]: add_norm(x, backend=name), double())


@pytest.mark.parametrize("transform", FUNC)
def test_torch_func_inside_a_compiled_function(transform: str) -> None:
    def run(x: Tensor) -> Any:
        return FUNC[transform](lambda x: add_norm(x, 2 * x, eps=0.1), x)

    x = double()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(x), run(x))


@pytest.mark.parametrize("whole", [True, False])
def test_forward_mode_of_compiled_functions(whole: bool) -> None:
    def norm(x: Tensor) -> Tensor:
        return add_norm(x, 2 * x, eps=0.1)

    def tangent(f: Any, x: Tensor) -> Any:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.cos()))).tangent

    x = double()
    torch._dynamo.reset()
    if whole:
        got = torch.compile(tangent, backend="aot_eager")(norm, x)
    else:
        compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
        compiled(x)  # captured where there is nothing of it
        got = tangent(compiled, x)
    torch.testing.assert_close(got, tangent(norm, x))


OUT = {
    "both": lambda x, out: add_norm(x, x, out=out),
    "the stream's": lambda x, out: add_norm_stream(x, x, stream_out=out)[1],
    "a policy's": lambda x, out: add_norm(x, x, norm=norms.DyT(0.5), out=out),
    "eager's": lambda x, out: add_norm(x, x, out=out, backend="eager"),
}


@pytest.mark.parametrize("call", OUT)
@pytest.mark.parametrize("transform", FUNC)
def test_out_inside_a_transform_is_refused(transform: str, call: str) -> None:
    """As torch refuses its own: what is written there would be of one sample, or without its tangent."""
    x, message = double(), r"out can not be written inside torch\.func transforms.*: call without it, and copy"
    out = torch.full_like(x, 7)
    for mode in (torch.enable_grad, torch.no_grad):
        for where in (lambda x: out, torch.empty_like):
            with pytest.raises(ValueError, match=message), mode():
                FUNC[transform](lambda x, where=where: OUT[call](x, where(x)), x)
    with forward_ad.dual_level():
        for of_x in (True, False):
            given = [forward_ad.make_dual(t, x.cos()) if (t is x) == of_x else t for t in (x, out)]
            with pytest.raises(ValueError, match=message):
                OUT[call](*given)
    assert (out == 7).all()


def test_vmap_with_dropout() -> None:
    x = torch.ones(3, 4, 8)
    for part in torch.func.vmap(lambda x: add_norm_stream(x, dropout_p=0.5, seed=3)[1])(x):
        same_bits("one sample", part, add_norm_stream(x[0], dropout_p=0.5, seed=3)[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: add_norm(x, dropout_p=0.5))(x)


@pytest.mark.parametrize("named", ["x", "weight", "branch_scale"])
def test_forward_mode(named: str) -> None:
    function, tensors = as_function(small("layer"), None)
    i = OPERANDS.index(named)
    tangent = torch.randn_like(tensors[i])
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(t.detach(), tangent) if j == i else t.detach() for j, t in enumerate(tensors)]
        tangents = [forward_ad.unpack_dual(t).tangent for t in function(*dual)]
    want = torch.autograd.functional.jvp(lambda t: function(*tensors[:i], t, *tensors[i + 1 :]), tensors[i], tangent)[1]
    for got, theirs in zip(tangents, want, strict=True):
        torch.testing.assert_close(theirs if got is None else got, theirs)


@every_route
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_replays_the_dropout(backend: str | None, use_reentrant: bool) -> None:
    module = AddNorm(D, dropout=0.5, drop_path=0.3, layer_scale=0.5, backend=backend)

    def gradients(checkpointed: bool) -> list[Tensor]:
        torch.manual_seed(11)
        x, residual = torch.ones(5, 3, D).requires_grad_(), torch.linspace(0, 1, 90).reshape(5, 3, D).requires_grad_()
        y = checkpoint(module, x, residual, use_reentrant=use_reentrant) if checkpointed else module(x, residual)
        module.zero_grad()
        y.square().sum().backward()
        return [t.grad for t in (x, residual, *module.parameters()) if t.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        same_bits("gradient", a, b)


@every_route
def test_only_what_is_differentiated_is_recorded(backend: str | None) -> None:
    y, z = add_norm_stream(torch.ones(3, D), torch.ones(3, D), torch.ones(D), backend=backend)
    assert y.grad_fn is None
    assert z.grad_fn is None
    with torch.no_grad():
        assert not add_norm(torch.ones(3, D).requires_grad_(), backend=backend).requires_grad


@every_route
def test_an_unused_result_is_no_burden(backend: str | None) -> None:
    """Only y, only the stream, or both in two backward calls: the same sums."""
    x = double()
    grads = []
    for parts in (("y", "z"), ("z", "y"), ("both",)):
        leaf = x.clone().requires_grad_()
        y, z = add_norm_stream(leaf, leaf, backend=backend)
        losses = {"y": y.square().sum(), "z": z.sin().sum()}
        losses["both"] = losses["y"] + losses["z"]
        for part in parts:
            losses[part].backward(retain_graph=True)
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[2])
    torch.testing.assert_close(grads[1], grads[2])


@every_route
def test_inference_mode(backend: str | None) -> None:
    x = torch.randn(3, D)
    with torch.inference_mode():
        y, z = add_norm_stream(x, x, backend=backend)
        again = add_norm(y, z, out=y.clone(), backend=backend)
    assert y.is_inference()
    assert again.is_inference()
    same_bits("y", y.clone(), add_norm(x, x, backend=backend))


@every_route
def test_inference_mode_records_nothing_with_gradients_on_inside(backend: str | None) -> None:
    x, out = torch.randn(3, D, requires_grad=True), torch.empty(3, D)
    with torch.inference_mode(), torch.enable_grad():
        y, z = add_norm_stream(x, x, backend=backend)
        add_norm(x, x, out=out, backend=backend)
        assert not torch.nn.functional.layer_norm(x, (D,)).requires_grad
    assert not y.requires_grad
    assert not z.requires_grad
    same_bits("out", out, y.clone())


@every_route
@pytest.mark.parametrize("where", ["x", "weight"])
def test_requires_grad_on_a_non_leaf(backend: str | None, where: str) -> None:
    leaf = double(D if where == "weight" else 2, *([] if where == "weight" else [D])).requires_grad_()
    given = {"x": double(), "weight": double(D), where: leaf * 2}
    add_norm(given["x"], None, given["weight"], backend=backend).square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.shape == leaf.shape


@every_route
def test_everything_in_bfloat16_trains(backend: str | None) -> None:
    """Gradients arrive in each operand's own dtype, at hooks too."""
    seen = []
    arguments = fresh(build(Case(**{**vars(EVERYTHING), "x": torch.bfloat16, "parameters": torch.float32})))
    for name in OPERANDS:
        arguments[name].register_hook(lambda g, name=name: seen.append((name, g.dtype)))
    add_norm(**arguments, backend=backend).sum().backward()
    assert sorted(seen) == sorted((name, arguments[name].dtype) for name in OPERANDS)


@every_route
@pytest.mark.parametrize(("shape", "x_dtype", "dtype"), [
    ((), torch.float16, torch.float16), ((1,), torch.bfloat16, torch.bfloat16), ((2, 1), torch.float16, torch.float16),
    ((1,), F64, torch.float32),
])  # fmt: skip
def test_a_broadcast_row_scale_sums_its_gradient_before_rounding(
    backend: str | None, shape: tuple[int, ...], x_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """Rows of which each gives more than float16 has, and all together nothing or little."""
    x = torch.full((2, 4, 2048), 64.0, dtype=x_dtype)
    x[:, 1::2] = -64
    x[:, 0, 0] += 1
    scale = torch.ones(shape, dtype=dtype, requires_grad=True)
    _, stream = add_norm_stream(x, row_scale=scale, backend=backend)
    (grad,) = torch.autograd.grad(stream.sum(dtype=F64), scale)
    want = x.double().sum(-1).sum_to_size(shape)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), want, rtol=float(torch.finfo(dtype).eps), atol=0.0)
