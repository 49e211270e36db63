"""`FusePass`: a model that Inductor compiles has its sites fused, and gives what it gave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import addnorm
from addnorm.backends import native
from addnorm.fusing import fuse_pass as pass_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # Inductor's own imports


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """No compiled code from before: what comes from a cache goes through no pass."""
    torch._dynamo.reset()
    with fresh_cache():
        yield


def encoder(norm_first: bool) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def results(call: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and all gradients. Not those of `y.square().sum()`, which a norm makes constant: rounding alone."""
    y = call(x)
    return [y, *torch.autograd.grad(y.sin().sum(), [x, *model.parameters()])]


# Two norms a layer; in pre-norm the first has no sum before it.
@pytest.mark.parametrize(("norm_first", "sites"), [(False, 4), (True, 3)])
def test_a_compiled_model_is_fused_and_as_exact(norm_first: bool, sites: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_file, "left_to_inductor", lambda site: "")
    model, fuse_pass = encoder(norm_first), addnorm.FusePass()
    compiled = torch.compile(model, options={"pre_grad_custom_pass": fuse_pass})
    x = torch.randn(2, 5, 32, requires_grad=True)
    after, before = results(compiled, model, x), results(model, model, x)
    assert (fuse_pass.fused, fuse_pass.native) == (sites, 0)
    wide = x.detach().double().requires_grad_()
    exact = encoder(norm_first).double()
    for new, old, true in zip(after, before, results(exact, exact, wide), strict=True):
        rounding = 8 * torch.finfo(new.dtype).eps * true.abs().max()
        assert (new - true).abs().max() <= 2 * (old - true).abs().max() + rounding


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_without_dropout_the_sites_are_inductors(dropout: float) -> None:
    model, fuse_pass = encoder(False).train(), addnorm.FusePass()
    for layer in model.layers:
        layer.dropout1.p = layer.dropout2.p = dropout
    compiled = torch.compile(model, options={"pre_grad_custom_pass": fuse_pass})
    compiled(torch.randn(2, 5, 32))
    assert (fuse_pass.fused, fuse_pass.native) == (4, 0 if dropout else 4)


def test_the_report_names_every_norm_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pass_file, "left_to_inductor", lambda site: "" if site.stream else "by rule")
    fuse_pass = addnorm.FusePass()
    assert repr(fuse_pass).startswith("FusePass: no norm calls seen yet")
    torch.compile(encoder(True), options={"pre_grad_custom_pass": fuse_pass})(torch.randn(2, 5, 32))
    sites = fuse_pass.report.sites
    assert [(site.norm, site.call) for site in sites] == [(f"layers.{i}.norm{j}", 0) for i in (0, 1) for j in (1, 2)]
    assert [site.fused for site in sites] == [False, True, True, True]
    assert (fuse_pass.fused, fuse_pass.native) == (3, 0)
    assert fuse_pass.report.complete
    assert repr(fuse_pass).startswith("FusePass: 3 of 4 norm calls fused with their sum")


def test_norms_that_share_a_sum() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.LayerNorm(32), nn.RMSNorm(32)

        def forward(self, x: Tensor) -> Tensor:
            total = x + nn.functional.dropout(torch.tanh(x), 0.1)
            return self.a(total) * self.b(total)

    fuse_pass = addnorm.FusePass()
    torch.compile(Twice(), options={"pre_grad_custom_pass": fuse_pass})(torch.randn(2, 5, 32))
    assert (fuse_pass.fused, fuse_pass.native) == (1, 0)
    assert [site.fused for site in fuse_pass.report.sites] == [True, False]


@pytest.mark.parametrize("gain", [torch.ones(1), torch.ones(32, dtype=torch.int64)])
def test_a_gain_that_is_no_weight_stays_outside(gain: Tensor) -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gain", gain)
            self.register_buffer("shift", gain)

        def forward(self, x: Tensor) -> Tensor:
            h = x + nn.functional.dropout(torch.tanh(x), 0.1)
            return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain + self.shift

    fuse_pass = addnorm.FusePass()
    torch.compile(Gained(), options={"pre_grad_custom_pass": fuse_pass})(torch.randn(2, 5, 32))
    assert (fuse_pass.fused, fuse_pass.native) == (1, 0)


def test_positions_times_a_number_are_the_residual_as_a_whole() -> None:
    """The integers themselves would be none."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(32)

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            return self.norm(nn.functional.dropout(torch.tanh(x), 0.1) + positions * 0.1)

    fuse_pass = addnorm.FusePass()
    compiled = torch.compile(Positions(), options={"pre_grad_custom_pass": fuse_pass})
    compiled(torch.randn(2, 5, 32), torch.arange(320).view(2, 5, 32))
    assert fuse_pass.fused == 1


def test_the_hash_follows_the_sources_and_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    before = addnorm.FusePass().uuid()
    assert addnorm.FusePass().uuid() == before
    with monkeypatch.context() as patch:
        patch.setattr(native, "REASON", "no kernels")
        assert addnorm.FusePass().uuid() != before
    monkeypatch.setattr(pass_file, "SOURCES", pass_file.SOURCES[1:])
    pass_file.get_hash_for_files.cache_clear()
    assert addnorm.FusePass().uuid() != before
