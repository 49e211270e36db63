"""The policies against their formulas, with eps large enough to matter."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import AddNorm, Stack, add_norm, add_norm_stream, explain_dispatch
from addnorm.backends import native
from addnorm.norms import NORMS, Derf, DyT, Norm

EPS = 0.3
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def rows(shape: tuple[int, ...] = (4, 3, 17)) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) * 2 + 1


@norms
def test_statistics_have_the_stated_size(norm: Norm) -> None:
    for dtype in (torch.float64, torch.float32):
        stats = norm.statistics(rows().to(dtype), EPS)
        assert stats.shape == (4, 3, norm.stats_per_row)
        assert stats.dtype == dtype


FORMULAS = {
    "layer": lambda z: torch.nn.functional.layer_norm(z, (17,), eps=EPS),
    "rms": lambda z: torch.nn.functional.rms_norm(z, (17,), eps=EPS),
    "prms": lambda z: z / (z[..., :2].square().mean(-1, keepdim=True) + EPS).sqrt(),  # 2 = ceil(17 / 16)
    "scale": lambda z: z / (z.norm(dim=-1, keepdim=True).square() + EPS).sqrt(),
    "dyt": lambda z: 2 / (1 + torch.exp(-z)) - 1,  # tanh(z / 2)
    "derf": lambda z: 2 * torch.special.ndtr(z / 2**0.5) - 1,  # erf(z / 2)
}


@norms
def test_normalise_is_its_formula(norm: Norm) -> None:
    z = rows()
    torch.testing.assert_close(norm.normalise(z, norm.statistics(z, EPS)), FORMULAS[norm.name](z))


@norms
def test_backward_is_the_derivative(norm: Norm) -> None:
    z = rows().requires_grad_()
    g = torch.randn_like(z)
    stats = norm.statistics(z, EPS)
    xhat = norm.normalise(z, stats)
    (want,) = torch.autograd.grad(xhat, z, g)
    torch.testing.assert_close(norm.backward(g, z, xhat, stats).detach(), want)


@norms
def test_identities_of_a_correct_gradient(norm: Norm) -> None:
    """dz . xhat = (eps / s^3) (G . xhat), and for layer sum(dz) = 0: exact, eps included."""
    if norm.name not in ("layer", "rms", "scale"):
        return  # prms: its other columns add to dz . xhat; dyt and derf: they have no statistics
    z, g = rows(), rows()
    stats = norm.statistics(z, EPS)
    xhat = norm.normalise(z, stats)
    dz, r = norm.backward(g, z, xhat, stats), stats[..., -1]
    torch.testing.assert_close((dz * xhat).sum(-1), EPS * r**3 * (g * xhat).sum(-1))
    if norm.name == "layer":
        torch.testing.assert_close(dz.sum(-1), torch.zeros(4, 3, dtype=torch.float64))


def test_layer_bounds() -> None:
    """Mean 0, variance v / (v + eps), and |xhat| <= sqrt(d - 1), which a one-hot row attains."""
    norm, z = NORMS["layer"], rows()
    xhat = norm.normalise(z, norm.statistics(z, EPS))
    v = z.var(-1, correction=0)
    torch.testing.assert_close(xhat.mean(-1), torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(xhat.var(-1, correction=0), v / (v + EPS))
    one_hot = torch.zeros(512, dtype=torch.float64).index_fill_(0, torch.tensor(7), 1.0)
    assert abs(norm.normalise(one_hot, norm.statistics(one_hot, 0.0)).max() - 511**0.5) < 1e-12


def test_scale_with_one_gain() -> None:
    """The paper's g, one number for all columns, starts at sqrt(d): the size of a row with unit variance."""
    z, g = rows().requires_grad_(), torch.tensor(17**0.5, dtype=torch.float64, requires_grad=True)
    y = add_norm(z, None, g.expand(17), norm="scale", eps=0.0)
    torch.testing.assert_close(y.norm(dim=-1), torch.full((4, 3), 17**0.5, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda z, g: add_norm(z, z, g.expand(17), norm="scale"), (z, g))


WITHOUT_KERNELS = [name for name in NORMS if name not in ("layer", "rms")]


@pytest.mark.parametrize("norm", WITHOUT_KERNELS)
def test_no_kernel_is_said(norm: str) -> None:
    z = rows()
    found = explain_dispatch(z, norm=norm)
    assert found.chosen == "eager"
    if native.EXTENSION is not None:
        reason = f"there is no kernel for norm='{norm}', only for 'layer' and 'rms'"
        assert found.support["cpu"].reason == reason
        with pytest.raises(ValueError, match=reason):
            add_norm(z, norm=norm, backend="cpu")
    weight, bias = torch.rand(17, dtype=torch.float64), torch.rand(17, dtype=torch.float64)
    operands = [t.requires_grad_() for t in (rows((2, 17)), rows((2, 17)), weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: add_norm_stream(*t, norm=norm, weight_offset=1.0), operands)
    with pytest.raises(ValueError, match="norm='batch' is unknown; there are: 'layer', 'rms', 'prms', 'scale', 'dyt'"):
        explain_dispatch(z, norm="batch")


# -- in a module and in a stack, against the formula with all its parameters ---------------------------

WRITTEN: dict[str, Callable[[Tensor, AddNorm], Tensor]] = {
    "layer": lambda z, m: (
        m.weight * (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + m.eps).sqrt() + m.bias
    ),
    "rms": lambda z, m: m.weight * z / (z.square().mean(-1, keepdim=True) + m.eps).sqrt(),
    "prms": lambda z, m: m.weight * z / (z[..., :2].square().mean(-1, keepdim=True) + m.eps).sqrt(),
    "scale": lambda z, m: m.weight * z / (z.square().sum(-1, keepdim=True) + m.eps).sqrt(),
    "dyt": lambda z, m: m.weight * torch.tanh(m.get_parameter("alpha") * z) + m.bias,
    "derf": lambda z, m: m.weight * torch.erf(m.get_parameter("alpha") * z + m.get_parameter("shift")) + m.bias,
}  # fmt: skip
STARTS = {
    "layer": {"weight": ((17,), 1.0), "bias": ((17,), 0.0)},
    "rms": {"weight": ((17,), 1.0)},
    "prms": {"weight": ((17,), 1.0)},
    "scale": {"weight": ((1,), math.sqrt(17))},
    "dyt": {"weight": ((17,), 1.0), "bias": ((17,), 0.0), "alpha": ((1,), 0.5)},
    "derf": {"weight": ((17,), 1.0), "bias": ((17,), 0.0), "alpha": ((1,), 0.5), "shift": ((1,), 0.0)},
}


@pytest.mark.parametrize("norm", NORMS)
def test_parameters_start_where_the_papers_have_them(norm: str) -> None:
    block = AddNorm(17, norm=norm)
    assert {name: (tuple(p.shape), float(p.detach().mean())) for name, p in block.named_parameters()} == {
        name: (shape, pytest.approx(value)) for name, (shape, value) in STARTS[norm].items()
    }
    centred = AddNorm(17, norm=norm, weight_offset=1.0)
    assert centred.weight is not None
    torch.testing.assert_close(centred.weight.detach() + 1, block.weight)
    assert norm == "scale" or not centred.weight.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_module_is_its_formula(norm: str, offset: float) -> None:
    """y and every gradient, in float64."""
    block = AddNorm(17, norm=norm, weight_offset=offset, dtype=torch.float64)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.7, 0.2)
    plain = copy.deepcopy(block)
    assert plain.weight is not None
    x, residual, g = rows(), rows(), rows()
    leaves = [t.requires_grad_() for t in (x, residual)]
    got = block(x, residual)
    shifted = {name: p + offset if name == "weight" else p for name, p in plain.named_parameters()}
    holder = torch.nn.Module()
    for name, value in {**shifted, "bias": shifted.get("bias")}.items():
        holder.register_buffer(name, value)
    holder.eps, holder.get_parameter = block.eps, holder.get_buffer  # pyright: ignore[reportAttributeAccessIssue]
    want = WRITTEN[norm](residual + x, holder)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(got, want)
    theirs = torch.autograd.grad(want, [*leaves, *plain.parameters()], g)
    for ours, theirs_ in zip(torch.autograd.grad(got, [*leaves, *block.parameters()], g), theirs, strict=True):
        torch.testing.assert_close(ours, theirs_)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("placement", ["pre", "post", "layernorm_scaling"])
def test_a_stack_is_its_formula(norm: str, placement: str) -> None:
    stack = Stack([torch.nn.Linear(17, 17) for _ in range(4)], 17, norm=norm, placement=placement).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, 0.5, 0.2)
    x = h = rows((2, 17))
    norms = list(stack.placement.norms)  # pyright: ignore[reportArgumentType]
    for index, (f, n) in enumerate(zip(stack.sublayers, norms, strict=True)):
        if placement == "post":
            h = WRITTEN[norm](h + f(h), n)
        else:
            h = h + f(WRITTEN[norm](h, n) / (math.sqrt(index // 2 + 1) if placement == "layernorm_scaling" else 1))
    want = h if placement == "post" else WRITTEN[norm](h, stack.placement.final_norm)  # pyright: ignore[reportArgumentType]
    got = stack(x)
    torch.testing.assert_close(got, want)
    parameters = list(stack.parameters())
    ours, theirs = (torch.autograd.grad(y.square().sum(), parameters) for y in (got, want))
    for (name, _), a, b in zip(stack.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_a_policy_object_has_numbers_that_differentiate() -> None:
    """...and autograd takes them like any operand, dropout, an explicit stream and `out` included."""
    x, residual, alpha = rows(), rows(), torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    y, stream = add_norm_stream(x, residual, norm=DyT(alpha))
    torch.testing.assert_close(stream, x + residual)
    torch.testing.assert_close(y, torch.tanh(0.8 * (x + residual)))
    assert torch.autograd.gradcheck(lambda a: add_norm(x, residual, norm=DyT(a), dropout_p=0.5, seed=3), (alpha,))
    assert torch.autograd.gradgradcheck(lambda a: add_norm(x, residual, norm=DyT(a)), (alpha,))
    assert torch.autograd.gradcheck(lambda a, s: add_norm(x, residual, norm=Derf(a, s)), (alpha, shift))
    with torch.no_grad():
        out = torch.empty_like(x)
        assert add_norm(x, residual, norm=DyT(alpha), out=out) is out
        torch.testing.assert_close(out, y)
    with pytest.raises(ValueError, match="out is for inference"):
        add_norm(x, residual, norm=DyT(alpha), out=torch.empty_like(x))
    named = AddNorm(17, norm=DyT(alpha=0.8), dtype=torch.float64)
    torch.testing.assert_close(named(x, residual), y)
    assert named.norm == "dyt"
    for shape in ((2,), (1, 1)):  # which would make y's shape another
        with pytest.raises(ValueError, match=rf"alpha must be .* shape \(\) or \(1,\), got {re.escape(str(shape))}"):
            DyT(torch.ones(shape))
    for wrong, message in (
        (torch.ones(1, dtype=torch.int64), "alpha must be torch.float64, .*got torch.int64"),
        (torch.ones(1, device="meta"), "alpha is on meta, x on cpu"),
    ):
        for call in (add_norm, add_norm_stream, explain_dispatch):
            with pytest.raises((TypeError, ValueError), match=message):
                call(x, residual, norm=DyT(wrong))
    with pytest.raises(TypeError, match="alpha must be a number, got str"):
        DyT("0.5")  # pyright: ignore[reportArgumentType]


class Halved(Norm):
    """A norm that is in no table."""

    name = "halved"
    stats_per_row = 0
    bias_by_default = False

    def statistics(self, z: Tensor, eps: float) -> Tensor:
        return z.new_empty((*z.shape[:-1], 0))

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return z / 2

    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        return g / 2


def test_a_policy_of_one_s_own_works() -> None:
    x = rows((2, 17)).float()
    stack = Stack([torch.nn.Identity()] * 2, 17, norm=Halved(), placement="post")
    torch.testing.assert_close(stack(x), x)
    assert stack.describe().startswith("post: 2 sublayers in 1 layer, width 17, halved norm")


class Powered(DyT):
    """It has a learned number, and an option beside it."""

    name = "powered"

    def __init__(self, alpha: float | Tensor = 0.5, *, power: int = 3) -> None:
        super().__init__(alpha)
        self.power = power

    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        return super().normalise(z, stats) ** self.power


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, while it traces
@pytest.mark.parametrize(
    "changed",
    [
        lambda m: m,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"),
        lambda m: lambda x: torch.func.functional_call(m, {k: p * 1 for k, p in m.named_parameters()}, x),
    ],
    ids=["itself", "deepcopy", "pickle", "compile", "functional_call"],
)
def test_a_policy_keeps_its_options_beside_the_learned_numbers(changed: Callable[..., Any]) -> None:
    torch._dynamo.reset()
    block, x = AddNorm(17, norm=Powered(0.8, power=2)), rows((2, 17)).float()
    torch.testing.assert_close(changed(block)(x), torch.tanh(0.8 * x) ** 2)


@pytest.mark.parametrize("factor", [None, 2.0], ids=["leaf", "result"])
def test_a_policy_s_number_may_come_with_a_gradient(factor: float | None) -> None:
    """A module starts from its value, which is no part of another graph: it warns of nothing and can be copied."""
    alpha = torch.nn.Parameter(torch.tensor([0.25]))
    norm = DyT(alpha if factor is None else alpha * factor)
    for module in (AddNorm(17, norm=norm), Stack([torch.nn.Identity()] * 2, 17, norm=norm)):
        x = rows((2, 17)).float()
        torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
        starts = [p.item() for name, p in module.named_parameters() if name.endswith("alpha")]
        assert set(starts) == {0.25 * (factor or 1)}


def test_a_number_that_is_kept_elsewhere_is_named() -> None:
    class Elsewhere(DyT):
        def __init__(self) -> None:
            self.other = 0.5

        @property
        def own(self) -> dict[str, float | Tensor]:
            return {"alpha": self.other}

    with pytest.raises(TypeError, match=r"Elsewhere must keep its learned number in self.alpha, or override with_own"):
        AddNorm(17, norm=Elsewhere())


def test_table_holds_each_norm_by_its_name() -> None:
    assert [norm.name for norm in NORMS.values()] == list(NORMS) == ["layer", "rms", "prms", "scale", "dyt", "derf"]
    assert (NORMS["layer"].bias_by_default, NORMS["rms"].bias_by_default) == (True, False)
