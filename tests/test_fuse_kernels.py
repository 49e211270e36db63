"""Without a kernel there is nothing to gain: plain torch would carry out the call, more slowly than the model does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F  # noqa: N812

import addnorm
from addnorm.backends import native
from addnorm.fusing import fuse

from .support.kernels import needs_kernels

REASON = "the C++ extension is not built; torch 9.9 is running"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # Inductor's own imports


class Sublayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm, self.plain = nn.Linear(16, 16), nn.LayerNorm(16), nn.RMSNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.dropout(self.mix(self.plain(x)), 0.5, self.training))


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "EXTENSION", None)
    monkeypatch.setattr(native, "REASON", REASON)
    torch._dynamo.reset()
    with fresh_cache():
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("mode", ["eager", "inductor", "modules"])
def test_nothing_is_fused_and_one_warning_names_the_remedy(mode: str) -> None:
    for model in (Sublayer(), nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)):
        handle, x = fuse(model, mode=mode), torch.randn(2, 3, 16)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", "addnorm.fuse found nothing to fuse in")
            model(x)
            model(x)
        (warning,) = told
        assert f"({REASON}): `addnorm doctor` says what helps" in str(warning.message)
        assert (handle.report.fused, handle.report.plain) == (0, 0)


@pytest.mark.usefixtures("no_kernels")
def test_a_pass_leaves_the_sites_to_inductor() -> None:
    model, found = Sublayer(), addnorm.FusePass()
    torch.compile(model, options={"pre_grad_custom_pass": found})(torch.randn(2, 3, 16))
    assert found.fused == 0
    assert REASON in {site.norm: site.reason for site in found.report.sites}["norm"]


@needs_kernels
def test_with_kernels_they_are_fused() -> None:
    with fuse(model := Sublayer()) as handle:
        model(torch.randn(2, 3, 16))
    assert (handle.report.fused, handle.report.plain) == (1, 1)
