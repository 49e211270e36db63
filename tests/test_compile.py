"""torch.compile and torch.export: whole graphs, dynamic shapes, no recompiles, the results of eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import config as partitioner
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx import GraphModule

from addnorm import AddNorm, add_norm, add_norm_stream
from addnorm.backends import native

from .support.calls import fresh, routes
from .support.cases import EVERYTHING, build
from .support.oracle import OPERANDS
from .support.tolerance import same_bits

every_route = pytest.mark.parametrize("backend", routes())
# torch's own modules warn while they trace.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
D = 16


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], *, dynamic: bool | None = True, backend: str = "aot_eager") -> Any:
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def trained(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    for t in tensors:
        t.grad = None
    y = function(*tensors)
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in tensors if t.grad is not None)]


@pytest.mark.parametrize("norm", ["layer", "dyt", "derf"])
def test_training_exports_with_dynamic_rows_and_dropout(norm: str) -> None:
    rows = {0: torch.export.Dim.DYNAMIC}
    module = AddNorm(D, norm=norm, dropout=0.5)
    program = torch.export.export(module, (torch.randn(4, D),), strict=False, dynamic_shapes=(rows,))
    assert program.module()(torch.randn(7, D)).shape == (7, D)


@every_route
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_training_with_dynamic_shapes_without_recompiles(backend: str | None, norm: str) -> None:
    def block(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        return add_norm(x, residual, weight, norm=norm, branch_scale=0.5, backend=backend)

    quick = compiled(block)
    for i, (batch, steps, d) in enumerate([(2, 3, D), (4, 5, 24), (7, 2, 33), (3, 9, 8)]):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            tensors = leaves((batch, steps, d), (batch, steps, d), (d,))
            for a, b in zip(trained(quick, tensors), trained(block, tensors), strict=True):
                torch.testing.assert_close(a, b)


@every_route
def test_inference_with_dynamic_shapes_without_recompiles(backend: str | None) -> None:
    def block(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm_stream(x, residual, eps=1e-4, residual_scale=1.5, stream_dtype=torch.float64, backend=backend)

    quick = compiled(block)
    for i, (rows, d) in enumerate([(4, D), (9, 31), (2, 100)]):
        with torch._dynamo.config.patch(error_on_recompile=i > 0), torch.no_grad():
            x, residual = torch.randn(rows, d), torch.randn(rows, d)
            for a, b in zip(quick(x, residual), block(x, residual), strict=True):
                same_bits("result", a, b)


def test_the_recompile_check_can_fail() -> None:
    quick = compiled(lambda x, p: add_norm(x, eps=p))
    quick(torch.ones(2, 3), 0.1)
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(Exception, match=r"[Rr]ecompil"):
        quick(torch.ones(2, 3, dtype=torch.float64), 0.1)


@every_route
def test_every_option_compiles(backend: str | None) -> None:
    problem = build(EVERYTHING)
    plain = fresh(problem)
    names = [name for name in OPERANDS if name in plain]
    rest = {k: v for k, v in plain.items() if k not in names}

    def block(*tensors: Tensor) -> Tensor:
        return add_norm(**dict(zip(names, tensors, strict=True)), **rest, backend=backend)

    tensors = [plain[name] for name in names]
    for a, b in zip(trained(compiled(block), tensors), trained(block, tensors), strict=True):
        torch.testing.assert_close(a, b)


@every_route
def test_seed_tensor_is_an_input_of_the_graph(backend: str | None) -> None:
    """Another seed is another mask, without another graph."""

    def block(x: Tensor, seed: Tensor) -> Tensor:
        return add_norm_stream(x, dropout_p=0.5, seed=seed, backend=backend)[1]

    quick = compiled(block)
    for i, seed in enumerate((3, 4, -5)):
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            same_bits(
                "stream",
                quick(torch.ones(4, 50), torch.tensor(seed)),
                block(torch.ones(4, 50), torch.tensor(seed)),
            )


@every_route
def test_dropout_without_a_seed_draws_a_new_one_each_time(backend: str | None) -> None:
    def block(x: Tensor) -> Tensor:
        return add_norm_stream(x, dropout_p=0.5, backend=backend)[1]

    quick = compiled(block)
    torch.manual_seed(2)
    first, second = quick(torch.ones(4, 50)), quick(torch.ones(4, 50))
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    same_bits("after the same manual_seed", quick(torch.ones(4, 50)), first)
    torch.manual_seed(2)
    same_bits("as eager draws it", block(torch.ones(4, 50)), first)


@every_route
def test_out_compiles(backend: str | None) -> None:
    def block(x: Tensor, out: Tensor, stream_out: Tensor) -> Tensor:
        return add_norm_stream(x, x, out=out, stream_out=stream_out, backend=backend)[0]

    x, out, stream_out = torch.randn(4, D), torch.full((4, D), torch.nan), torch.full((4, D), torch.nan)
    with torch.no_grad():
        compiled(block)(x, out, stream_out)
    want = add_norm_stream(x, x, backend=backend)
    same_bits("out", out, want[0])
    same_bits("stream_out", stream_out, want[1])


def test_bad_input_is_an_error_while_compiling() -> None:
    with pytest.raises(Exception, match="residual has shape"):
        compiled(lambda x, r: add_norm(x, r), dynamic=False)(torch.ones(2, 3), torch.ones(2, 4))


class Block(nn.Module):
    """Pre-norm and post-norm in one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.first, self.last = nn.Linear(D, D), AddNorm(D, norm="rms"), AddNorm(D, layer_scale=0.1)

    def forward(self, x: Tensor) -> Tensor:
        y, stream = self.first.stream(self.linear(x), x)
        return self.last(self.linear(y), stream)


@pytest.mark.parametrize("autocast", [False, True])
def test_inductor_trains_a_module(autocast: bool) -> None:
    module = Block()
    quick = compiled(module, backend="inductor")
    results = []
    for function in (module, quick):
        module.zero_grad()
        x = torch.linspace(-1, 1, 6 * D).reshape(2, 3, D).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = function(x)
        y.square().sum().backward()
        assert x.grad is not None
        results.append([y.detach(), x.grad, *[p.grad for p in module.parameters()]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 2e-2, "atol": 2e-2} if autocast else {}))


@pytest.mark.parametrize("strict", [True, False])
def test_export(strict: bool) -> None:
    module = Block().eval()
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(module, (torch.randn(5, D),), dynamic_shapes={"x": {0: rows}}, strict=strict)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "addnorm.forward.default" in targets
    for n in (2, 7):
        x = torch.randn(n, D)
        torch.testing.assert_close(program.module()(x), module(x))


def test_export_survives_a_file(tmp_path: Any) -> None:
    module = Block().eval()
    torch.export.save(torch.export.export(module, (torch.ones(5, D),)), tmp_path / "block.pt2")
    torch.testing.assert_close(
        torch.export.load(tmp_path / "block.pt2").module()(torch.ones(5, D)), module(torch.ones(5, D))
    )


@pytest.mark.skipif(native.EXTENSION is None, reason=native.REASON)
def test_a_graph_passes_only_what_is_not_at_its_default() -> None:
    """Each argument in a compiled graph's call costs time at every call."""
    seen: list[tuple[str, int]] = []

    def look(graph: GraphModule, _: Any) -> Callable[..., Any]:
        seen.extend((str(n.target), len(n.args)) for n in graph.graph.nodes if "addnorm" in str(n.target))
        return make_boxed_func(graph.forward)

    aot = aot_autograd(fw_compiler=look, bw_compiler=look)
    plain = torch.compile(lambda x, r, w: add_norm(x, r, w), fullgraph=True, backend=aot)
    plain(*leaves((3, D), (3, D), (D,))).sum().backward()
    assert seen == [("addnorm.forward.default", 6), ("addnorm.backward.default", 6)]
    seen.clear()
    rms = torch.compile(lambda x, r: add_norm(x, r, norm="rms", eps=1e-6), fullgraph=True, backend=aot)
    rms(torch.ones(3, D), torch.ones(3, D))
    assert seen == [("addnorm.forward.default", 8)]


def test_make_fx_records_one_operator() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x, r: add_norm(x, r))(torch.randn(3, D), torch.randn(3, D))
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count("addnorm.forward.default") == 1
    x = torch.randn(3, D)
    same_bits("y", graph(x, x), add_norm(x, x))


@every_route
@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_a_seed_is_not_drawn_again_to_save_memory(backend: str | None, budget: float) -> None:
    """A partitioner told to keep less may draw what torch's randint gave a second time in the backward."""

    def blocks(x: Tensor, residual: Tensor, weights: Tensor) -> Tensor:
        for weight in weights:
            branch = nn.functional.gelu(x @ weight)
            x, residual = add_norm_stream(branch, residual, dropout_p=0.5, backend=backend)
        return x + residual

    tensors = [t.double().detach().requires_grad_() for t in leaves((8, 64), (8, 64), (4, 64, 64))]
    torch.manual_seed(0)
    expected = trained(blocks, tensors)
    with partitioner.patch(activation_memory_budget=budget):
        torch.manual_seed(0)
        got = trained(compiled(blocks, backend="aot_eager_decomp_partition"), tensors)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("seeds", [torch.tensor(3), torch.tensor([3, 4, 5])])
def test_a_mask_in_plain_torch_is_one_operator(seeds: Tensor) -> None:
    """Inductor would take minutes for Philox's two hundred."""
    x, sizes = torch.randn(3, 4, D), []

    def each(x: Tensor, seed: Tensor) -> Tensor:
        return add_norm(x, dropout_p=0.5, seed=seed)

    def batched(x: Tensor, seeds: Tensor) -> Tensor:
        return torch.func.vmap(each, in_dims=(0, 0 if seeds.dim() else None))(x, seeds)

    def look(graph: GraphModule, _: Any) -> Callable[..., Any]:
        sizes.append(len(graph.graph.nodes))
        return make_boxed_func(graph.forward)

    y = torch.compile(batched, fullgraph=True, backend=aot_autograd(fw_compiler=look))(x, seeds)
    torch.testing.assert_close(y, batched(x, seeds))
    assert sizes[0] < 60
