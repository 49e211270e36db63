"""What models change in place: whatever trained before fusing trains after it, to the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm.fusing import fuse

from .support import norms_by_hand as hand
from .support.small import results

pytestmark = pytest.mark.filterwarnings(
    "ignore:addnorm.fuse found nothing", "ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"
)

WIDTH = 32
NORMS = (*hand.NORMS, nn.LayerNorm, nn.RMSNorm)


class Block(nn.Module):
    """A pre-norm block whose second sum is made in place, of the first one or of the input itself."""

    def __init__(self, norm: type[nn.Module], *, alone: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.alone = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), norm(WIDTH), alone

    def forward(self, input: Tensor) -> Tensor:
        h = self.a(input) if self.alone else input + self.a(input)
        branch = self.b(self.norm(h))
        h.view(-1, WIDTH).add_(branch.view(-1, WIDTH))
        return h


def block(norm: type[nn.Module], dtype: torch.dtype, *, alone: bool) -> tuple[Block, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Block(norm, alone=alone).to(dtype), {"input": torch.randn(2, 5, WIDTH).to(dtype)}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
def test_a_sum_that_is_changed_later(norm: type[nn.Module], dtype: torch.dtype, alone: bool) -> None:
    """Norms by hand often keep a copy in float32, or a difference, not what they were given; ours keeps that."""
    model, inputs = block(norm, dtype, alone=alone)
    try:
        before = results(model, inputs)
    except RuntimeError:  # this norm keeps its input
        with fuse(model), pytest.raises(RuntimeError, match="modified by an inplace operation"):
            results(model, inputs)
        return
    with fuse(model) as handle:
        for _ in range(2):
            after = results(model, inputs)
            assert all(torch.equal(value, after[name]) for name, value in before.items())
    (site,) = handle.report.sites
    assert not site.fused
    assert "changed in place later" in site.reason


def test_compiled_it_trains_too() -> None:
    model, inputs = block(nn.RMSNorm, torch.bfloat16, alone=False)
    before = results(model, inputs)
    with fuse(model, mode="inductor"):
        for _ in range(2):
            torch.testing.assert_close(results(model, inputs), before, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
def test_without_gradients_it_is_fused(norm: type[nn.Module]) -> None:
    model, inputs = block(norm, torch.float64, alone=False)
    with torch.no_grad():
        before = model(**inputs)
        with fuse(model) as handle:
            for _ in range(2):
                torch.testing.assert_close(model(**inputs), before)
    assert handle.report.fused == 1, str(handle.report)


def test_inspect_measures_it_all_the_same() -> None:
    model, inputs = block(nn.RMSNorm, torch.bfloat16, alone=False)
    found = addnorm.inspect(model, inputs, loss=lambda y: y.float().square().mean())
    assert [site.site for site in found.sites] == ["norm"]
