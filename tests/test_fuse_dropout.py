"""Dropouts beside the sites: the kernels draw them, at torch's rate, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.autograd.profiler import profile
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from addnorm.backends.native import EXTENSION
from addnorm.fusing import dropout, fuse

from .support.tolerance import no_worse

pytestmark = pytest.mark.skipif(EXTENSION is None, reason="without kernels torch draws")

WIDTH, P = 32, 0.3
torch_attention = F.scaled_dot_product_attention


def draws(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """How often torch drew random numbers in a step."""
    seen: Any = profile()
    with seen:
        model(x).sum().backward()
    names = [event.name for event in seen.function_events]
    assert "aten::sum" in names
    return sum("bernoulli" in name for name in names)


class Block(nn.Module):
    """Dropout in attention, after an activation, before a sum and after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, x, dropout_p=P if self.training else 0.0)
        y = self.linear(self.drop(torch.relu(y)))
        return self.drop(self.norm(x + self.drop(y)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_no_dropout_is_left_to_torch() -> None:
    model, x = Block().train(), torch.randn(2, 20, WIDTH)
    assert draws(model, x) == 4
    with fuse(model, example=x):
        assert draws(model, x) == 0
        model.eval()
        torch.manual_seed(0)
        state = torch.get_rng_state()
        model(x)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rate_scale_gradient_and_seed(dtype: torch.dtype) -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, P, self.training)

    model, x = Drops().train(), torch.rand(64, 10, WIDTH, dtype=dtype).add_(1).requires_grad_()
    with pytest.warns(UserWarning, match="nothing to fuse"):
        handle = fuse(model, example=x)
    with handle:
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(model(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    y = found[2]
    kept, count = y != 0, x.numel()
    assert abs(kept.double().mean().item() - (1 - P)) < 5 * (P * (1 - P) / count) ** 0.5 + 2**-16
    exact = torch.where(kept, x.detach().double() / (1 - P), 0.0)
    no_worse("y", y.detach(), exact, 0 * exact, torch.where(kept, x * (1 / (1 - P)), 0.0).detach())
    gradient = torch.randn_like(x)
    (found_gradient,) = torch.autograd.grad(y, x, gradient)
    exact = torch.where(kept, gradient.double() / (1 - P), 0.0)
    no_worse("gradient", found_gradient, exact, 0 * exact, torch.where(kept, gradient * (1 / (1 - P)), 0.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:addnorm.fuse found nothing")
@pytest.mark.parametrize("mode", ["eager", "inductor"])
def test_what_is_dropped_may_be_changed_in_place(mode: str) -> None:
    """As XLM multiplies with its mask: torch's dropout keeps nothing of its result."""

    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(2 * x, P, self.training)
            y *= 3
            return y

    model, x = Drops().train(), torch.rand(6, 10, WIDTH).add_(1).requires_grad_()
    with fuse(model, mode=mode):
        for _ in range(2):
            y = model(x)
            (gradient,) = torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(gradient, torch.where(y != 0, 6 / (1 - P), 0.0))


def masks(length: int) -> dict[str, dict[str, Any]]:
    keep = torch.rand(3, 1, length, length) > 0.4
    keep[0, :, 0] = False  # a row that sees nothing
    return {
        "plain": {},
        "bool": {"attn_mask": keep},
        "float": {"attn_mask": torch.randn(length, length)},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3, "attn_mask": keep},
    }


@pytest.mark.parametrize("name", masks(1))
def test_attention_is_torchs_but_for_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(dropout, "drawn", lambda weights, p: weights)  # what is drawn is not the same
    options = masks(20)[name]
    q, k, v = (torch.randn(3, 2, 20, 8, requires_grad=True) for _ in range(3))
    after, before = dropout.attention(q, k, v, dropout_p=P, **options), torch_attention(q, k, v, **options)
    gradient = torch.randn_like(before)
    grads = [torch.autograd.grad(y, (q, k, v), gradient) for y in (after, before)]
    wide = {name: t.double() if name == "attn_mask" and t.dtype == torch.float32 else t for name, t in options.items()}
    q, k, v = (t.detach().double().requires_grad_() for t in (q, k, v))
    truth = torch_attention(q, k, v, **wide)
    exact = torch.autograd.grad(truth, (q, k, v), gradient.double())
    for new, old, true in zip((after, *grads[0]), (before, *grads[1]), (truth, *exact), strict=True):
        assert (new - true).norm() <= 2 * (old - true).norm() + 8 * torch.finfo(new.dtype).eps * true.norm()


def test_attention_drops_weights() -> None:
    """Of equal values each output is the sum of the kept weights."""
    q, k, v = torch.randn(8, 4, 50, 8), torch.randn(8, 4, 50, 8), torch.ones(8, 4, 50, 1)
    torch.manual_seed(3)
    y = dropout.attention(q, k, v, dropout_p=P)
    torch.manual_seed(3)
    assert torch.equal(dropout.attention(q, k, v, dropout_p=P), y)
    weights = torch.softmax(q @ k.mT / 8**0.5, -1)
    variance = weights.square().sum(-1).mean().item() * P / (1 - P)
    assert abs(y.mean().item() - 1) < 5 * (variance / y.numel()) ** 0.5
    assert abs(y.var().item() / variance - 1) < 0.1


class Call(nn.Module):
    """One call of a function of torch's."""

    def __init__(self, function: Any, **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors, **self.options)


class Own(Tensor):
    """With rules of its own."""


def left() -> dict[str, tuple[Call, tuple[Tensor, ...]]]:
    x, q, few = torch.randn(20, WIDTH), torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8)
    attend = Call(torch_attention, dropout_p=P)
    return {
        "not training": (Call(F.dropout, p=P, training=False), (x,)),
        "in place": (Call(F.dropout, p=P, inplace=True), (x,)),
        "everything": (Call(F.dropout, p=1.0), (x,)),
        "narrow": (Call(F.dropout, p=P), (x[:, :3],)),
        "a number": (Call(F.dropout, p=P), (torch.tensor(2.0),)),
        "attention in bfloat16": (attend, (q.bfloat16(),) * 3),
        "grouped attention": (Call(torch_attention, dropout_p=P, enable_gqa=True), (q, few, few)),
        "attention without dropout": (Call(torch_attention), (q, q, q)),
        "few keys": (attend, (q, q[:, :, :3], q[:, :, :3])),
    }


@pytest.mark.parametrize("name", left())
def test_what_is_left_to_torch(name: str) -> None:
    model, tensors = left()[name]
    torch.manual_seed(4)
    before = model(*(t.clone() for t in tensors))
    with pytest.warns(UserWarning, match="nothing to fuse"):
        handle = fuse(model, example=[t.clone() for t in tensors])
    with handle:
        torch.manual_seed(4)
        assert torch.equal(model(*tensors), before)


def test_attention_called_by_keywords() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query=x, key=x, value=x, dropout_p=P)

    x = torch.randn(2, 20, WIDTH, requires_grad=True)
    model = Keywords()
    with pytest.warns(UserWarning, match="nothing to fuse"):
        handle = fuse(model, example=x)
    with handle:
        model(x)
        assert draws(model, x) == 0
    assert handle.report.breaks == ()


def test_torchs_heads_called_with_defaults() -> None:
    heads, x = nn.MultiheadAttention(WIDTH, 2), torch.randn(20, 2, WIDTH)
    arguments = (x, x, x, WIDTH, 2, heads.in_proj_weight, heads.in_proj_bias, None, None, False, P)
    call = Call(lambda *_: F.multi_head_attention_forward(*arguments, heads.out_proj.weight, heads.out_proj.bias)[0])
    with pytest.warns(UserWarning, match="nothing to fuse"):
        handle = fuse(call, example=x)
    with handle:
        torch.manual_seed(7)
        after = call(x)
    torch.manual_seed(7)
    assert torch.equal(after, call(x))  # its weights are given back, and are left to torch
    assert handle.report.breaks == ()


def test_a_subclass_keeps_its_own_dropout() -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.randn(20, WIDTH)
    graph = torch.fx.Graph()
    place = graph.placeholder("x")
    for value, target in ((x, dropout.drawn), (torch.randn(20, WIDTH).as_subclass(Own), F.dropout)):
        place.meta["example_value"] = value
        node = graph.call_function(F.dropout, (place, P, True, False))
        dropout.draw_faster(graph)
        assert node.target is target


def test_what_torch_refuses_is_refused() -> None:
    model = Call(F.dropout, p=1.5)
    fuse(model)
    with pytest.raises(ValueError, match="between 0 and 1"):
        model(torch.randn(20, WIDTH))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:.*is deprecated:FutureWarning:torch.*")
@pytest.mark.parametrize("mode", ["eager", "inductor"])
def test_torchs_own_layers_draw_nothing(mode: str) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, dropout=P, batch_first=True)
    x, mask = torch.randn(3, 20, WIDTH), nn.Transformer.generate_square_subsequent_mask(20)

    def call(x: Tensor) -> Tensor:
        return layer(x, src_mask=mask)

    assert draws(call, x) == 4
    with fuse(layer, mode=mode), fresh_cache():
        call(x)
        if mode == "eager":
            assert draws(call, x) == 0
        else:
            _, code = run_and_get_code(call, x)
            assert code
            assert not any("normalized_rand" in text for text in code)
        state = torch.get_rng_state()
        call(x)
        assert not torch.equal(torch.get_rng_state(), state)


def test_checkpointed_dropout_is_drawn_again() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.block, x, use_reentrant=False)

    def gradients(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(6)
        return [*torch.autograd.grad(model(x).square().sum(), [*model.parameters()])]

    model = Checkpointed().train()
    plain, x = copy.deepcopy(model.block), torch.randn(2, 20, WIDTH)
    with fuse(model), fuse(plain):
        for each in (model, plain):
            gradients(each)  # the sites are tried
        for kept, again in zip(gradients(plain), gradients(model), strict=True):
            assert torch.equal(kept, again)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_strides_that_a_view_needs_are_kept() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(P)

        def forward(self, x: Tensor) -> Tensor:
            turned = self.drop(x.transpose(0, 1))
            return self.norm(x + turned.transpose(0, 1).view(-1, WIDTH).view_as(x))

    x = torch.randn(3, 20, WIDTH)
    with fuse(Transposed().train(), example=x) as handle:
        assert handle.model(x).shape == x.shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_the_report_says_so() -> None:
    x = torch.randn(2, 20, WIDTH)
    with fuse(Block().train(), example=x) as handle:
        assert handle.report.to_dict()["drawn"]
        assert "drawn by the kernels" in str(handle.report)
    with fuse(Block().eval(), example=x) as handle:
        assert not handle.report.to_dict()["drawn"]
        assert "drawn by the kernels" not in str(handle.report)
