"""Small models in which a sum, its norm and what lies between them are used in ways that a rewriting could change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from addnorm.fusing import fuse

pytestmark = pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")

WIDTH = 32
Forward = Callable[[Any, Tensor], Any]


class Model(nn.Module):
    """Two Linears a and b, two norms, a weight w and a scale per feature p."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.code = forward
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layer, self.rms = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.w, self.p = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def build(forward: Forward) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model(forward), torch.randn(3, 5, WIDTH)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    found = model(x)
    return list(found) if isinstance(found, tuple) else [found]


def trained(model: Model, x: Tensor) -> dict[str, Tensor | None]:
    """The outputs and all gradients; None where there is none."""
    model.zero_grad()
    w = model.w.detach().clone()
    found = outputs(model, x)
    torch.manual_seed(1)
    sum((y * torch.randn_like(y)).sum() for y in found if y.requires_grad).backward()  # pyright: ignore
    with torch.no_grad():
        model.w.copy_(w)
    results = {str(index): y.detach() for index, y in enumerate(found)}
    return results | {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_trains_the_same(forward: Forward) -> Any:
    """At the first call and the second; the report."""
    model, x = build(forward)
    want = trained(copy.deepcopy(model), x)
    with fuse(model, mode="eager") as handle:
        for _ in range(2):
            got = trained(model, x)
            for name, value in want.items():
                assert (value is None) == (got[name] is None), name
                if value is not None:
                    torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}")
    return handle.report


def assert_infers_the_same(forward: Forward) -> Any:
    model, x = build(forward)
    with torch.no_grad():
        want = outputs(copy.deepcopy(model), x)
        with fuse(model, mode="eager") as handle:
            for _ in range(2):
                w = model.w.detach().clone()
                torch.testing.assert_close(outputs(model, x), want)
                model.w.copy_(w)  # which some of these change
    return handle.report


def trains(forward: Forward) -> bool:
    """Whether torch can: it may keep what is changed."""
    try:
        trained(*build(forward))
    except RuntimeError:
        return False
    return True


def rescaled(tensor: Tensor, factor: Tensor) -> Tensor:
    return tensor.mul_(factor)


def changed_between(s: Any, x: Tensor, change: Callable[[Tensor], Any], see: Callable[[Tensor], Tensor]) -> Tensor:
    h = x + s.a(x)
    seen = see(h)
    change(h)
    return s.layer(seen)


def weight_changed(s: Any, x: Tensor) -> Tensor:
    g = s.w + 1
    with torch.no_grad():
        s.w.add_(0.5)
    return F.rms_norm(x + s.a(x), (WIDTH,), g)


def gain_changed(s: Any, x: Tensor) -> Tensor:
    g = 1 + s.w
    g.mul_(0.5)
    return F.rms_norm(x + s.a(x), (WIDTH,), g)


def gain_without_gradient(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        g = s.w + 1
    return F.rms_norm(x + s.a(x), (WIDTH,), g)


def by_operator(s: Any, x: Tensor) -> Tensor:
    h = x + s.a(x)
    torch.ops.aten.mul_.Tensor(h, s.w.detach())
    return s.layer(h)


def by_checkpoint(s: Any, x: Tensor) -> Tensor:
    h = x + s.a(x)
    z = checkpoint(lambda t: rescaled(t, torch.full((), 2.0)) + 1, h, use_reentrant=False)
    assert z is not None
    return s.layer(h) + z


def branch_changed(s: Any, x: Tensor) -> Tensor:
    u = s.a(x)
    rows = torch.full((3, 1, 1), 0.5)
    y = s.layer(x + s.p * (rows * u))
    u.add_(1)
    return y + u


def weight_changed_later(s: Any, x: Tensor) -> Tensor:
    y = F.rms_norm(x + s.a(x), (WIDTH,), 1 + s.w)
    with torch.no_grad():
        s.w.mul_(0.99)
    return y


def turned_sum(s: Any, x: Tensor) -> Tensor:
    """Not contiguous, so that a reshape copies."""
    return x.transpose(0, 1) + s.a(x).transpose(0, 1)


def changed_before_a_copy(s: Any, x: Tensor) -> Tensor:
    h = turned_sum(s, x)
    h.mul_(s.w.detach())
    seen = h.reshape(-1, WIDTH)
    return s.layer(seen) + seen


def changed_behind_a_copy(s: Any, x: Tensor) -> Tensor:
    h = turned_sum(s, x)
    seen = h.reshape(-1, WIDTH)
    h.mul_(s.w.detach())
    return s.layer(seen) + 2 * seen


def read_as_another_type(s: Any, x: Tensor) -> Tensor:
    h = (x + s.a(x)).view(torch.float32)
    return F.layer_norm(h.float(), (WIDTH,), s.w, s.p).to(torch.bfloat16)


def square_of_a_vector(s: Any, x: Tensor) -> Tensor:
    v = s.a(x[0, 0])
    return s.layer(x[0, 1] + v * v)


LEFT: dict[str, Forward] = {  # one norm call, which stays what it was
    "the sum changed behind its view": lambda s, x: changed_between(
        s, x, lambda h: h[:, 0].zero_(), lambda h: h.view(-1, WIDTH)
    ),
    "the sum changed behind a cast": lambda s, x: changed_between(s, x, lambda h: h.mul_(2), lambda h: h.float()),
    "the weight changed behind the gain": weight_changed,
    "the gain changed": gain_changed,
    "weight in the type of another tensor": lambda s, x: F.layer_norm(x + s.a(x), (WIDTH,), s.w.type_as(x), s.p.to(x)),
    "changed by an operator": by_operator,
    "the sum changed before a copy": changed_before_a_copy,
    "the sum changed behind a copy": changed_behind_a_copy,
    "a view in a type": read_as_another_type,
    "changed by a checkpoint": by_checkpoint,
}
FUSED: dict[str, Forward] = {  # one norm call with its sum
    "a Linear added to itself": lambda s, x: (lambda u: s.layer(u + u))(s.a(x)),
    "a multiple added to itself": lambda s, x: (lambda u: s.layer(u + u))(s.a(x) * 3),
    "a scaled branch added to itself": lambda s, x: (lambda u: s.rms(u + u))(s.a(x) * s.p),
    "the square of a vector": square_of_a_vector,
    "an operator behind it": lambda s, x: torch.ops.aten.silu(s.layer(x + s.a(x))),
    "reshape by name": lambda s, x: s.layer(torch.reshape(input=x + s.a(x), shape=(-1, WIDTH))),
    "flatten by name": lambda s, x: s.layer(torch.flatten(input=x + s.a(x), start_dim=0, end_dim=1)),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(name: str) -> None:
    report = assert_infers_the_same(LEFT[name])
    assert report.fused == 0, str(report)
    if trains(LEFT[name]):
        report = assert_trains_the_same(LEFT[name])
        assert report.fused == 0, str(report)


@pytest.mark.parametrize("name", FUSED)
def test_fused_all_the_same(name: str) -> None:
    for report in (assert_infers_the_same(FUSED[name]), assert_trains_the_same(FUSED[name])):
        assert report.fused == 1, str(report)


@pytest.mark.parametrize(
    "forward", [branch_changed, weight_changed_later, gain_without_gradient], ids=lambda f: f.__name__
)
def test_left_where_gradients_are_recorded(forward: Forward) -> None:
    """The scale's gradient needs the branch, and the norm's the weight, where torch keeps their products."""
    report = assert_trains_the_same(forward)
    assert report.fused == 0, str(report)


@pytest.mark.parametrize("copied", [False, True])
def test_a_returned_sum_has_its_whole_gradient(copied: bool) -> None:
    """The norm's share too: of hidden states gradients are asked for."""

    def forward(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = turned_sum(s, x).reshape(-1, WIDTH) if copied else x + s.a(x)
        return s.layer(h), h

    model, x = build(forward)
    weights = torch.randn(15, WIDTH) if copied else torch.randn(3, 5, WIDTH)
    plain = copy.deepcopy(model)

    def gradient(model: Model) -> Tensor:
        y, h = model(x)
        (found,) = torch.autograd.grad((y * weights).sum(), h)
        return found

    want = gradient(plain)
    with fuse(model, mode="eager") as handle:
        for _ in range(2):
            torch.testing.assert_close(gradient(model), want)
    assert (handle.report.fused, handle.report.plain) == (0, 1), str(handle.report)
    with torch.no_grad(), fuse(model, mode="eager") as handle:
        model(x)
    assert handle.report.fused == (not copied), str(handle.report)


def test_what_is_returned_may_be_changed() -> None:
    """No view made without gradients, where the original gives a tensor of its own."""
    model, x = build(lambda s, x: s.layer((x + s.a(x)).view(-1, WIDTH)))
    with fuse(model, mode="eager") as handle:
        for _ in range(2):
            with torch.no_grad():
                y = model(x)
            y += model.p
            y.sum().backward()
            model(x).detach_()
    assert handle.report.fused == 1, str(handle.report)


def test_types_under_autocast() -> None:
    """A Linear's float32 bias is added in the branch's type, at the first call too."""
    model, x = build(lambda s, x: (lambda h: (s.layer(h), h * 1))((lambda v: v + s.a(v))(s.b(x))))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        want = outputs(copy.deepcopy(model), x)
        with fuse(model, mode="eager") as handle:
            for _ in range(2):
                got = outputs(model, x)
                assert [t.dtype for t in got] == [t.dtype for t in want]
                torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    assert handle.report.fused == 1, str(handle.report)


def test_a_view_in_a_type_has_no_gradient() -> None:
    model, x = build(lambda s, x: s.layer((x + s.a(x)).view(x.dtype)) + s.b(x))
    plain = copy.deepcopy(model)
    want = trained(plain, x)
    with fuse(model, mode="eager"):
        for _ in range(2):
            got = trained(model, x)
            assert {name: value is None for name, value in got.items()} == {n: v is None for n, v in want.items()}


def test_a_hook_on_the_sum_sees_its_whole_gradient() -> None:
    """What it makes of the gradient, too."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = x + s.a(x)
        y = s.layer(h)
        if h.requires_grad:
            h.register_hook(lambda gradient: 2 * gradient)
        return y + h

    report = assert_trains_the_same(forward)
    assert (report.fused, report.plain) == (0, 1), str(report)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_backward_hooks_of_inner_modules_are_called() -> None:
    """Dynamo leaves them out where their module's input is computed in the model."""
    model, x = build(lambda s, x: s.rms(s.b(s.layer(x + s.a(x))) + x))
    called = []

    def double(module: nn.Module, arriving: Any, leaving: Any) -> Any:
        called.append(module)
        return tuple(2 * gradient for gradient in arriving)

    hook = model.layer.register_full_backward_hook(double)
    want = trained(copy.deepcopy(model), x)
    called.clear()
    with fuse(model, mode="eager") as handle:
        got = trained(model, x)
        assert called == [model.layer]
        assert handle.report.fused == 0
        torch.testing.assert_close(got, want)
        hook.remove()
        trained(model, x)
        assert handle.report.fused == 2, str(handle.report)


def test_a_site_inside_a_transform_runs_as_it_was() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        return s.rms(x + torch.func.vmap(lambda row: s.layer(row + s.a(row)))(x))

    for report in (assert_infers_the_same(forward), assert_trains_the_same(forward)):
        assert report.fused == 1, str(report)
