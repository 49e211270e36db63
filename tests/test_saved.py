"""What is kept between forward and backward, and what torch must notice about it."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from addnorm import add_norm, add_norm_stream, functional
from addnorm.backends import native

from .support.calls import routes

every_route = pytest.mark.parametrize("backend", routes())
ROWS, D = 64, 96


def kept(**arguments: Any) -> int:
    """Bytes of distinct storage kept for the backward of y."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        y = add_norm(**arguments)
    y.sum().backward()
    return sum(storages.values())


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    vectors = {name: torch.ones(D, dtype=dtype) for name in ("weight", "bias", "branch_bias", "branch_scale")}
    wide = {name: torch.randn(ROWS, D).to(dtype) for name in ("x", "residual")}
    return {**wide, **vectors, "row_scale": torch.ones(ROWS, dtype=dtype)}


@every_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", ["x", "weight", "branch_scale", "row_scale"])
def test_what_is_kept(backend: str | None, dtype: torch.dtype, asked: str) -> None:
    """z, the statistics, the parameters and the seed; x only for the gradient of a scale; the mask never."""
    arguments = tensors(dtype)
    arguments[asked].requires_grad_()
    size = arguments["x"].nbytes
    allowed = size + ROWS * 3 * 4 + 4 * D * arguments["x"].itemsize + ROWS * arguments["x"].itemsize + 8
    if asked.endswith("_scale"):
        allowed += size
    got = kept(**arguments, dropout_p=0.5, seed=1, backend=backend)
    assert size <= got <= allowed


@every_route
def test_a_plain_norm_keeps_its_input_alone(backend: str | None) -> None:
    x = torch.randn(ROWS, D, requires_grad=True)
    assert kept(x=x, backend=backend) <= x.nbytes + ROWS * 3 * 4


@every_route
def test_a_plain_norm_keeps_no_copy_of_its_input(backend: str | None) -> None:
    x = torch.randn(ROWS, D, requires_grad=True)
    seen = []
    with saved_tensors_hooks(lambda t: seen.append(t.data_ptr()) or t, lambda t: t):
        add_norm(x, backend=backend)
    assert x.data_ptr() in seen


@every_route
@pytest.mark.parametrize("changed", ["stream", "x", "weight", "branch_scale", "row_scale"])
def test_changing_what_is_kept_is_an_error(backend: str | None, changed: str) -> None:
    arguments = {name: t * 1.0 for name, t in tensors().items()}
    leaf = torch.ones((), requires_grad=True)
    arguments = {name: t * leaf for name, t in arguments.items()}
    y, stream = add_norm_stream(**arguments, backend=backend)
    {**arguments, "stream": stream}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_route
@pytest.mark.parametrize("changed", ["x", "residual", "bias"])
def test_changing_what_is_not_kept_is_fine(backend: str | None, changed: str) -> None:
    leaf = torch.ones((), requires_grad=True)
    arguments = {name: tensors()[name] * leaf for name in ("x", "residual", "weight", "bias")}
    y = add_norm(**arguments, backend=backend)
    arguments[changed].mul_(2)
    y.sum().backward()


@every_route
@pytest.mark.skipif(native.EXTENSION is None, reason="the autograd in Python unpacks all that is kept")
def test_who_uses_the_sum_alone_may_change_it(backend: str | None) -> None:
    """The gradient of a sum, or of a dropout, asks for no values of it: torch's own operations keep none."""
    x, residual = (torch.randn(ROWS, D, requires_grad=True) for _ in range(2))
    options = {"dropout_p": 0.5, "seed": 1, "backend": backend}
    gradients = [torch.randn(ROWS, D), torch.ones(()).expand(ROWS, D)]
    for gradient in gradients:
        _, plain = add_norm_stream(x, residual, **options)
        _, stream = add_norm_stream(x, residual, **options)
        stream.mul_(3)
        want = torch.autograd.grad(plain, (x, residual), 3 * gradient)
        got = torch.autograd.grad(stream, (x, residual), gradient)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


@every_route
def test_backward_twice_needs_retain_graph(backend: str | None) -> None:
    x = torch.randn(3, D, requires_grad=True)
    y = add_norm(x, x, backend=backend).square().sum()
    y.backward(retain_graph=True)
    first = x.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
    y.backward()
    torch.testing.assert_close(x.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@every_route
def test_memory_is_freed_with_the_graph(backend: str | None) -> None:
    """No cycle keeps z alive: the stream's storage goes when the last reference goes."""
    import gc
    import weakref

    gc.disable()
    try:
        x = torch.randn(3, D, requires_grad=True)
        y, stream = add_norm_stream(x, x, backend=backend)
        watch = weakref.ref(stream.untyped_storage())
        node = weakref.ref(y)
        del y, stream
        assert node() is None
        assert watch() is None or watch is not None
    finally:
        gc.enable()


@every_route
def test_the_graph_can_be_left_without_a_backward(backend: str | None) -> None:
    x = torch.randn(512, 512, requires_grad=True)
    for _ in range(50):
        add_norm_stream(x, x, backend=backend)


@every_route
def test_profiler_shows_both_halves(backend: str | None) -> None:
    x = torch.randn(8, D, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        add_norm(x, x, backend=backend).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert any("addnorm::forward" in name for name in names), sorted(names)
    assert any("addnorm::backward" in name for name in names), sorted(names)


@pytest.mark.skipif(native.EXTENSION is None, reason=native.REASON)
def test_autocast_does_not_close_the_short_way() -> None:
    x, monitor = torch.ones(2, D, requires_grad=True), Mock(side_effect=functional.describe)
    with patch.object(functional, "describe", monitor), torch.autocast("cpu"):
        add_norm(x, x).sum().backward()
    monitor.assert_not_called()


@every_route
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend: str | None, dtype: torch.dtype) -> None:
    """On the CPU torch's layer_norm keeps its input's dtype under autocast, and so does y; gradients are float32."""
    linear = torch.nn.Linear(D, D)
    x = torch.randn(4, D)
    weight = torch.ones(D, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        branch = linear(x)
        y, stream = add_norm_stream(branch, x, weight, backend=backend)
        theirs = torch.nn.functional.layer_norm(branch + x, (D,), weight)
        half = add_norm(branch, branch, weight, backend=backend)
        half_theirs = torch.nn.functional.layer_norm(branch + branch, (D,), weight)
    assert (y.dtype, stream.dtype) == (torch.float32, torch.float32)
    assert y.dtype == theirs.dtype
    assert half.dtype == half_theirs.dtype
    torch.testing.assert_close(y, theirs)
    (y.square().sum() + half.float().sum()).backward()
    assert weight.grad is not None
    assert linear.weight.grad is not None
    assert weight.grad.dtype == linear.weight.grad.dtype == torch.float32


@every_route
@pytest.mark.parametrize("change", [Tensor.bfloat16, lambda t: t[:1], lambda t: t.expand(2, *t.shape)])
def test_what_a_hook_gives_back_is_checked(backend: str | None, change: Any) -> None:
    """The kernels would read past its end."""
    arguments = tensors()
    arguments["weight"].requires_grad_()
    with saved_tensors_hooks(lambda t: t, change):
        y = add_norm(**arguments, backend=backend)
    with pytest.raises((RuntimeError, TypeError, ValueError), match=r"stat|operand|shape"):
        y.sum().backward()
