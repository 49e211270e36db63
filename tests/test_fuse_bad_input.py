"""What `fuse` refuses, and errors inside a fused model: clear, and the model untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from addnorm.fusing import fuse
from addnorm.fusing.place import PLACE

WIDTH = 8


class Sublayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            raise KeyError("no rows")
        return self.norm(x + self.linear(x))


def compiled() -> nn.Module:
    model = Sublayer()
    model.compile(backend="eager")
    return model


def partly_compiled() -> nn.Module:
    return nn.Sequential(Sublayer(), compiled())


def scripted() -> nn.Module:
    return torch.jit.trace(Sublayer(), torch.randn(2, WIDTH))


def on_meta() -> nn.Module:
    return Sublayer().to("meta")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("mode", ["auto", "eager", "inductor", "modules"])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (compiled, "model has been compiled"),
        (partly_compiled, "the model's part 1 has been compiled"),
        (scripted, "model is TorchScript"),
        (on_meta, "linear.weight is on the meta device"),
    ],
)
def test_refused_and_untouched(build: Callable[[], nn.Module], message: str, mode: str) -> None:
    model = build()
    before = {path: part.__dict__.get(PLACE) for path, part in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        fuse(model, mode=mode)
    assert {path: part.__dict__.get(PLACE) for path, part in model.named_modules()} == before
    assert "__getstate__" not in model.__dict__


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")  # in mode "modules"
@pytest.mark.parametrize("mode", ["eager", "modules"])
@pytest.mark.parametrize("seen_before", [False, True])
def test_an_error_of_the_models_own(mode: str, seen_before: bool) -> None:
    model = Sublayer()
    with fuse(model, mode=mode) as handle:
        if seen_before:
            model(torch.randn(2, WIDTH))
        with pytest.raises(KeyError, match="no rows"):
            model(torch.randn(WIDTH))
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as found:
            model(torch.randn(2, WIDTH + 1))
        assert type(found.value) is RuntimeError
        model(torch.randn(2, WIDTH))
        assert handle.report.fused == (mode == "eager")


def test_what_can_not_be_captured_runs_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from addnorm.fusing import eager

    def broken(*_: object) -> None:
        raise RuntimeError("the graph makes no sense")

    monkeypatch.setattr(eager, "Piece", broken)
    model, x = Sublayer(), torch.randn(2, WIDTH)
    before = model(x)
    with fuse(model) as handle:
        with pytest.warns(UserWarning, match="could not capture|nothing to fuse") as warned:
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)
    assert any("could not capture Sublayer" in str(w.message) for w in warned)
    assert "the graph makes no sense" in handle.report.breaks[0]
    assert [site.reason for site in handle.report.sites] == ["the model was not captured"]


class Elsewhere(Sublayer):
    """Goes on on the meta device, which stands for any other than the parameters'."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = super().forward(x)
        far = y.to("meta")
        return y, F.layer_norm(far + far.tanh(), (WIDTH,)), F.layer_norm(far + torch.tensor(1.0), (WIDTH,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore:.*is deprecated:FutureWarning:torch.*")
@pytest.mark.parametrize("mode", ["eager", "inductor"])
def test_sites_on_other_devices_are_left_alone(mode: str) -> None:
    model, x = Elsewhere(), torch.randn(2, WIDTH)
    with fuse(model, mode=mode) as handle:
        for _ in range(2):
            assert [each.is_meta for each in model(x)] == [False, True, True]
    here, far, apart = handle.report.sites
    assert here.fused
    assert "on the meta device" in far.reason
    assert "its tensors are on cpu and meta" in apart.reason


@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_a_norm_without_numbers_is_left_alone(mode: str) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.to("meta"))

    model = Norm()
    with fuse(model, mode=mode) as handle, pytest.warns(UserWarning, match="nothing to fuse"):
        assert model(torch.randn(2, WIDTH)).is_meta
    assert ("meta device" if mode == "modules" else "no sum of two tensors") in handle.report.sites[0].reason


@pytest.mark.parametrize("mode", ["eager", "inductor", "modules"])
def test_compile_in_place_is_refused_while_fused(mode: str) -> None:
    model = Sublayer()
    handle = fuse(model, mode=mode)
    with pytest.raises(RuntimeError, match=f"Sublayer is fused in mode '{mode}', which compile\\(\\) would undo"):
        model.compile()
    assert model.__dict__[PLACE] is handle._call
    copy.deepcopy(model).compile(backend="eager")  # the plain model's
    handle.undo()
    model.compile(backend="eager")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:addnorm.fuse found nothing")
@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_what_is_traced_or_exported_is_the_plain_model(mode: str) -> None:
    model, x = nn.Sequential(Sublayer(), Sublayer()), torch.randn(2, WIDTH)
    before, names = model(x), {*model.__dict__}
    with fuse(model, mode=mode, example=x):
        assert torch.equal(torch.jit.trace(model, x)(x), before)
        operators = [str(node.target) for node in torch.export.export(model, (x,), strict=False).graph.nodes]
        assert {*copy.deepcopy(model).__dict__} == names
    assert operators.count("aten.layer_norm.default") == 2
    assert {*model.__dict__} == names


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning", "ignore:addnorm.fuse found nothing"
)
@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_a_quantised_model(mode: str) -> None:
    """Its Linears are no code that Dynamo traces: what lies between them is fused where that can be seen."""
    model, x = nn.Sequential(Sublayer(), Sublayer()).eval(), torch.randn(3, WIDTH)
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8).requires_grad_(False)
    before = model(x)
    with fuse(model, mode=mode) as handle:
        for _ in range(2):
            assert (model(x) - before).abs().max() < 1e-6
    assert handle.report.fused == (2 if mode == "eager" else 0), str(handle.report)


def test_the_outermost_with_undoes() -> None:
    model = Sublayer()
    with fuse(model) as outer:
        with fuse(model) as inner:
            assert inner is outer
        assert PLACE in model.__dict__
    assert PLACE not in model.__dict__


def test_frozen_parameters_are_fused() -> None:
    model = Sublayer().requires_grad_(False)
    x = torch.randn(2, WIDTH, requires_grad=True)
    (before,) = torch.autograd.grad(model(x).square().sum() + model(x).sum(), x)
    with fuse(model) as handle:
        for _ in range(2):
            (after,) = torch.autograd.grad(model(x).square().sum() + model(x).sum(), x)
    assert handle.report.fused == 1
    assert (after - before).abs().max() < 1e-5
    assert all(p.grad is None for p in model.parameters())
