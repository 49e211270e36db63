"""Compiled autograd: the backward of several calls as one graph, with the gradients of the plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import GraphModule

from addnorm import add_norm, add_norm_stream
from addnorm.backends import native

from .support.calls import fresh, routes
from .support.cases import BF16, EVERYTHING, Case, build, options
from .support.oracle import OPERANDS
from .support.tolerance import same_bits

pytestmark = [
    pytest.mark.skipif(native.EXTENSION is None, reason=native.REASON),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while it traces
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # of any result that is kept
]
every_route = pytest.mark.parametrize("backend", routes())
CASES = [
    EVERYTHING,
    Case(),
    Case(residual=None),
    Case(norm="rms", x=BF16, residual=BF16),
    Case(grads="stream"),
    Case(branch_scale="number", options=options(dropout_p=0.3, seed=5)),
]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graph_of(seen: list[GraphModule]) -> Any:
    def keep(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        seen.append(graph)
        return graph.forward

    return aot_autograd(fw_compiler=keep)


def gradients(arguments: dict[str, Any], grads: list[Tensor | None], backend: str | None) -> list[Tensor | None]:
    results = add_norm_stream(**arguments, backend=backend)
    pairs = [(t, g) for t, g in zip(results, grads, strict=True) if g is not None]
    torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
    return [arguments[name].grad for name in OPERANDS if isinstance(arguments.get(name), Tensor)]


@every_route
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradients_are_the_same(backend: str | None, compiler: str, case: Case) -> None:
    problem = build(case)
    want = gradients(fresh(problem), [problem.dy, problem.ds], backend)
    with compiled_autograd._enable(torch.compile(backend=compiler)):
        got = gradients(fresh(problem), [problem.dy, problem.ds], backend)
    for name, one, other in zip(OPERANDS, got, want, strict=False):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            same_bits(name, one, other)


@every_route
def test_the_graph_has_the_operator(backend: str | None) -> None:
    seen: list[GraphModule] = []
    x = torch.randn(4, 8, requires_grad=True)
    with compiled_autograd._enable(torch.compile(backend=graph_of(seen), fullgraph=True)):
        add_norm(x, x, backend=backend).sum().backward()
    called = [str(node.target) for graph in seen for node in graph.graph.nodes]
    assert any("addnorm.backward" in name for name in called), called


@every_route
def test_another_seed_or_scale_is_not_another_graph(backend: str | None) -> None:
    counter = CompileCounter()
    x = torch.randn(4, 8, requires_grad=True)
    with compiled_autograd._enable(torch.compile(backend=counter, fullgraph=True)):
        for step in range(4):
            x.grad = None  # adding to one is another graph
            add_norm(x, x, dropout_p=0.5, seed=step, branch_scale=1.0 + step, backend=backend).sum().backward()
    assert counter.frame_count == 1


@every_route
def test_two_calls_of_other_options_are_told_apart(backend: str | None) -> None:
    """The same tensors, of which a graph is kept by kind: each option belongs to the kind."""
    x, residual = torch.randn(4, 8), torch.randn(4, 8)
    others = [
        {}, {"norm": "rms"}, {"residual_scale": 2.0}, {"dropout_p": 0.5, "seed": 1}, {"dropout_p": 0.25, "seed": 1},
        {"branch_scale": 2.0}, {"weight": torch.ones(8), "weight_offset": 1.0}, {"weight": torch.ones(8)},
        {"stream_dtype": torch.float64},
    ]  # fmt: skip
    for options_of_call in others:
        grads = []
        for enabled in (False, True):
            a, b = x.clone().requires_grad_(), residual.clone().requires_grad_()
            y = add_norm(a, b, **options_of_call, backend=backend).square().sum()
            if enabled:
                with compiled_autograd._enable(torch.compile(backend="eager")):
                    y.backward()
            else:
                y.backward()
            grads.append((a.grad, b.grad))
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@every_route
@pytest.mark.parametrize("asked", ["x", "residual", "weight"])
def test_gradients_that_are_not_asked_for_are_not_made(backend: str | None, asked: str) -> None:
    given = {"x": torch.randn(4, 8), "residual": torch.randn(4, 8), "weight": torch.randn(8)}
    wanted = {}
    for enabled in (False, True):
        leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
        y = add_norm(**leaves, backend=backend).square().sum()
        if enabled:
            with compiled_autograd._enable(torch.compile(backend="eager")):
                (grad,) = torch.autograd.grad(y, leaves[asked])
        else:
            (grad,) = torch.autograd.grad(y, leaves[asked])
        wanted[enabled] = grad
    same_bits(asked, wanted[True], wanted[False])


@every_route
def test_a_second_time_needs_retain_graph(backend: str | None) -> None:
    x = torch.randn(4, 8, requires_grad=True)
    y = add_norm(x, x, dropout_p=0.5, seed=1, backend=backend).square().sum()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward(retain_graph=True)
        assert x.grad is not None
        first = x.grad.clone()
        y.backward()
        same_bits("gradient", x.grad, 2 * first)
        with pytest.raises(RuntimeError, match="second time"):
            y.backward()


@every_route
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_gradient_that_is_itself_differentiated(backend: str | None, compiler: str) -> None:
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        y = add_norm(x, x, residual_scale=2.0, branch_scale=0.5, backend=backend)
        return torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0].square().sum()

    (want,) = torch.autograd.grad(penalty(), x)
    with compiled_autograd._enable(torch.compile(backend=compiler)):
        found = penalty()
    (got,) = torch.autograd.grad(found, x)
    torch.testing.assert_close(got, want)


@every_route
def test_hooks_on_what_is_saved_run(backend: str | None) -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = add_norm(x, x, backend=backend).square().sum()
    with compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward()
    got, x.grad = x.grad, None
    add_norm(x, x, backend=backend).square().sum().backward()
    torch.testing.assert_close(got, x.grad)


@every_route
def test_a_compiled_step_of_several_calls(backend: str | None) -> None:
    """As it is switched on by torch._dynamo.config, with shapes that change."""
    weight = torch.randn(8, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        y, stream = add_norm_stream(x, x, weight, norm="rms", backend=backend)
        return add_norm(y, stream, weight, backend=backend).square().sum()

    @torch.compile(backend="aot_eager")
    def compiled(x: Tensor) -> Tensor:
        loss = step(x)
        loss.backward()
        return loss

    for rows in (4, 5, 6):
        x = torch.randn(rows, 8)
        weight.grad = None
        step(x).backward()
        want, weight.grad = weight.grad, None
        with torch._dynamo.config.patch(compiled_autograd=True):
            compiled(x)
        torch.testing.assert_close(weight.grad, want)
