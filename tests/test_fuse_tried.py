"""Mode "modules" of `fuse`: copies of a module are tried where its dropouts stand, for each mix of types, unnoticed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from addnorm.fusing import fuse
from addnorm.fusing.fast_path import FAST_PATH
from addnorm.fusing.local import torch_layers

pytestmark = pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")
WIDTH = 16
ORDERS = {
    "before the sum": lambda m, h, x: m.LayerNorm(m.dropout(m.dense(h)) + x),
    "after the sum": lambda m, h, x: m.LayerNorm(m.dropout(m.dense(h) + x)),
    "after the norm": lambda m, h, x: m.dropout(m.LayerNorm(m.dense(h) + x)),
    "before the Linear": lambda m, h, x: m.LayerNorm(m.dense(m.dropout(h)) + x),
    "after the sum, another": lambda m, h, x: m.LayerNorm(F.dropout(m.dense(h) + x, 0.5, m.training)),
}


class Output(nn.Module):
    """The end of BERT's sublayers, its parts in some order."""

    def __init__(self, order: str = "before the sum", p: float = 0.5, *, bias: bool = True) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(WIDTH, WIDTH, bias=bias), nn.Dropout(p)
        self.LayerNorm, self.order = nn.LayerNorm(WIDTH), order

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return ORDERS[self.order](self, hidden_states, input_tensor)


class Block(nn.Module):
    """timm's block; stochastic depth may drop the stream too."""

    def __init__(self, mix: nn.Module, *, whole: bool = False) -> None:
        super().__init__()
        self.attn, self.mlp, self.whole = mix, mix, whole
        for index in (1, 2):
            setattr(self, f"norm{index}", nn.LayerNorm(WIDTH))
            setattr(self, f"ls{index}", nn.Identity())
            setattr(self, f"drop_path{index}", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        branch = self.ls1(self.attn(self.norm1(x)))
        x = self.drop_path1(x + branch) if self.whole else x + self.drop_path1(branch)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class DroppedRMSNorm(nn.RMSNorm):
    def __init__(self) -> None:
        super().__init__(WIDTH, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", ORDERS)
def test_where_a_dropout_stands(order: str, bias: bool) -> None:
    model, x = Output(order, bias=bias), torch.randn(3, 5, WIDTH)
    with fuse(model, mode="modules") as handle:
        model(x, x)
    assert handle.report.fused == (order == "before the sum"), str(handle.report)


@pytest.mark.parametrize("whole", [False, True])
def test_where_stochastic_depth_stands(whole: bool) -> None:
    model = Block(nn.Linear(WIDTH, WIDTH), whole=whole)
    with fuse(model, mode="modules", example=torch.randn(3, 5, WIDTH)) as handle:
        assert handle.report.fused == (not whole), str(handle.report)


def test_a_norm_with_a_dropout_of_its_own() -> None:
    model = nn.Sequential(DroppedRMSNorm())
    with fuse(model, mode="modules", example=torch.randn(3, 5, WIDTH)) as handle:
        assert handle.report.plain == 0
    assert "random" in handle.report.sites[0].reason


def test_a_dropout_that_drops_all() -> None:
    model, x = Output(p=1.0), torch.randn(3, 5, WIDTH)
    before = model(x, x)
    with fuse(model, mode="modules") as handle:
        torch.testing.assert_close(model(x, x), before)
    assert handle.report.fused == 1


def test_the_first_call_draws_what_others_draw() -> None:
    model, x, found = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True), torch.randn(2, 5, WIDTH), []
    with fuse(model, mode="modules"):
        for _ in range(2):
            torch.manual_seed(0)
            found.append(model(x))
    assert torch.equal(*found)


class DiagonalRMSNorm(nn.Module):
    """Of float32, but for a product with the weight in the type that autocast has for it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        h = h.to(x.dtype)
        return h * self.weight if x.dtype != self.weight.dtype else F.linear(h, torch.diag(self.weight))


@pytest.mark.parametrize("change", ["input", "weight", "autocast"])
def test_other_types_after_the_first_call(change: str) -> None:
    model, x = nn.Sequential(DiagonalRMSNorm()), torch.randn(3, 5, WIDTH)
    if change == "weight":
        model, x = model.bfloat16(), x.bfloat16()
    plain = copy.deepcopy(model)
    with fuse(model, mode="modules", example=x) as handle:
        assert handle.report.plain == 1, str(handle.report)
        if change == "input":
            x = x.bfloat16()
        for each in (model, plain):
            each.to(torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            torch.testing.assert_close(model(x), plain(x))


class Strict(nn.Linear):
    """Refuses another type in a way of its own."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32, "float32 only"
        return super().forward(x)


class Single(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> Single:
        raise KeyError("no copies")


@pytest.mark.parametrize("kind", [Strict, Single])
def test_errors_of_copies_are_reasons(kind: type[nn.Linear]) -> None:
    model, x = Block(kind(WIDTH, WIDTH)), torch.randn(3, 5, WIDTH)
    before = model(x)
    with fuse(model, mode="modules") as handle:
        assert torch.equal(model(x), before)
    assert "can not be tried on a copy" in handle.report.sites[0].reason


def test_errors_where_it_is_fused_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(torch_layers, "add_norm", broken)
    model = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
    with fuse(model, mode="modules") as handle:
        model(torch.randn(2, 5, WIDTH))
    assert "fails where it is fused" in handle.report.sites[0].reason


HOOKS: list[Callable[[nn.Module, Callable[..., None]], Any]] = [
    nn.Module.register_forward_pre_hook,
    lambda module, hook: module.register_forward_hook(hook, with_kwargs=True, always_call=True),
]


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_see_the_models_own_calls_alone(register: Callable[[nn.Module, Callable[..., None]], Any]) -> None:
    model, seen = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True), []
    register(model.linear1, lambda *_: seen.append(1))
    with fuse(model, mode="modules") as handle:
        model(torch.randn(2, 5, WIDTH))
    assert len(seen) == 1
    assert handle.report.fused == 2


class Adapted(nn.Module):
    """A Linear with something beside it, as adapters have it, that shows the Linear's own weight and bias."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.beside = base, nn.Linear(base.in_features, base.out_features)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.beside(x)


def test_torchs_fast_path_is_no_measure() -> None:
    model, x = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True, dropout=0.0), torch.randn(2, 5, WIDTH)
    model.linear1 = Adapted(model.linear1)
    before = model(x)
    with fuse(model, mode="modules") as handle:
        torch.testing.assert_close(model(x), before)
    assert handle.report.fused == 2, str(handle.report)
    assert torch.backends.mha.get_fastpath_enabled()


def test_torchs_fast_path_stays_off_until_the_last_one_is_done() -> None:
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(FAST_PATH.off())  # an inspection of one thread, say
        second.enter_context(FAST_PATH.off())  # and a trial in another
        first.close()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def double(module: nn.Module) -> None:
    module.register_forward_hook(lambda _module, _args, result: 2 * result)


@pytest.mark.parametrize("part", ["dense", "dropout", "LayerNorm"])
def test_hooks_of_a_part_that_was_replaced(part: str) -> None:
    model, x = Output().eval(), torch.randn(3, 5, WIDTH)
    with fuse(model, mode="modules", example=(x, x)) as handle:
        assert handle.report.fused == 1
        setattr(model, part, copy.deepcopy(getattr(model, part)))
        torch.testing.assert_close(model(x, x), model._call_impl(x, x))
        double(getattr(model, part))
        torch.testing.assert_close(model(x, x), model._call_impl(x, x))


@pytest.mark.parametrize("kind", [nn.Linear, nn.Dropout, nn.LayerNorm])
def test_a_class_whose_forward_is_replaced(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, own = Output().eval(), torch.randn(3, 5, WIDTH), kind.forward
    with fuse(model, mode="modules", example=(x, x)):
        monkeypatch.setattr(kind, "forward", lambda module, x: 2 * own(module, x))
        torch.testing.assert_close(model(x, x), model._call_impl(x, x))
