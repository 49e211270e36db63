"""A view between the sum and the norm: the rows are the same, so that the two can be fused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from addnorm import FusePass
from addnorm.fusing import fuse

from .support import norms_by_hand as hand
from .support.small import assert_as_good, results

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")

WIDTH = 32
View = Callable[[Tensor], Tensor]
ROW_BY_ROW: dict[str, View] = {
    "view": lambda s: s.view(-1, WIDTH),
    "reshape": lambda s: s.reshape(-1, s.size(-1)),
    "torch.reshape": lambda s: torch.reshape(s, (5, 3, WIDTH)),
    "flatten": lambda s: s.flatten(0, 1),
    "torch.flatten": lambda s: torch.flatten(s, 0, -2),
    "unsqueeze": lambda s: s.unsqueeze(1),
}
OTHERWISE: dict[str, View] = {
    "other rows": lambda s: s.reshape(-1, WIDTH // 2),
    "other order": lambda s: s.transpose(0, 1),
    "turned": lambda s: s.reshape(15, WIDTH).t().reshape(15, WIDTH),
    "a part": lambda s: s[:, :2],
}


class Block(nn.Module):
    """A sublayer with a view after its sum, of which the stream goes on if `keeps`."""

    def __init__(self, view: View, norm: type[nn.Module] = nn.LayerNorm, *, keeps: str = "") -> None:
        super().__init__()
        self.view, self.keeps, self.linear = view, keeps, nn.Linear(WIDTH, WIDTH)
        width = view(torch.empty(3, 5, WIDTH)).shape[-1]
        self.norm = norm(width)
        if keeps.startswith("norm"):
            self.other = nn.LayerNorm(width)

    def forward(self, input: Tensor) -> Tensor:
        total = input + self.linear(input)
        seen = self.view(total)
        y = self.norm(seen)
        if self.keeps == "view":
            return y + 2 * seen
        if self.keeps == "sum":
            return y.sum() + 2 * total
        if self.keeps == "norm of the view":
            return y * self.other(seen)
        if self.keeps == "norm of another view":
            return y * self.other(self.view(total))
        return y * self.other(total).view(y.shape) if self.keeps == "norm of the sum" else y


KEEPS = {  # how many norms make the sum, and how many take it in
    "": (1, 0),
    "view": (1, 0),
    "sum": (1, 0),
    "norm of the view": (1, 1),
    "norm of another view": (1, 1),
    "norm of the sum": (1, 1),
}


def block(view: View, norm: type[nn.Module] = nn.LayerNorm, *, keeps: str = "") -> tuple[Block, dict[str, Tensor]]:
    torch.manual_seed(1)
    model = Block(view, norm, keeps=keeps)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            nn.init.normal_(p, mean=float("weight" in name), std=0.2)
    return model, {"input": torch.randn(3, 5, WIDTH)}


def assert_fused(model: nn.Module, inputs: dict[str, Tensor], fused: int, skipped: int = 0) -> None:
    before = results(model, inputs)
    exact = results(copy.deepcopy(model).double(), {name: t.double() for name, t in inputs.items()})
    with fuse(model) as handle:
        for _ in range(2):
            after = results(model, inputs)
            assert after["output"].shape == before["output"].shape
            assert_as_good(after, before, exact)
    assert (handle.report.fused, handle.report.skipped) == (fused, skipped), str(handle.report)


@pytest.mark.parametrize("keeps", KEEPS)
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_norm_of_a_view_of_the_sum(name: str, keeps: str) -> None:
    assert_fused(*block(ROW_BY_ROW[name], keeps=keeps), *KEEPS[keeps])


@pytest.mark.parametrize("keeps", ["", "view"])
@pytest.mark.parametrize("norm", hand.NORMS, ids=lambda norm: norm.__name__)
def test_norm_by_hand_of_a_view_of_the_sum(norm: type[nn.Module], keeps: str) -> None:
    assert_fused(*block(ROW_BY_ROW["torch.reshape"], norm, keeps=keeps), fused=1)


class LastByNumber(nn.Module):
    """RMSNorm of four dimensions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=3, keepdim=True) + 1e-6) * self.weight


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing to fuse")
def test_norm_by_hand_that_counts_dimensions() -> None:
    """The sum has three, so that there its last is another one."""
    model, inputs = block(ROW_BY_ROW["unsqueeze"], LastByNumber)
    with fuse(model) as handle:
        torch.testing.assert_close(model(**inputs), model(**inputs))
    assert handle.report.fused == 0, str(handle.report)


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing to fuse")
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_no_view_row_by_row_is_left(name: str) -> None:
    assert_fused(*block(OTHERWISE[name]), fused=0, skipped=1)


@pytest.mark.parametrize("keeps", KEEPS)
def test_other_shapes_and_compiled(keeps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of the view are the call's, also where they are symbols."""
    model, _ = block(ROW_BY_ROW["reshape"], keeps=keeps)
    monkeypatch.setattr(FusePass, "faster", lambda self, site: "")
    pass_ = FusePass()
    plain = copy.deepcopy(model)
    compiled = torch.compile(plain, dynamic=True, fullgraph=True, options={"pre_grad_custom_pass": pass_})
    with fuse(model) as handle, fresh_cache():  # what comes from a cache goes through no pass
        for rows in (3, 4, 7):
            x = torch.randn(rows, 5, WIDTH)
            want = plain(x)
            torch.testing.assert_close(model(x), want)
            torch.testing.assert_close(compiled(x), want)
    assert handle.report.fused == KEEPS[keeps][0], str(handle.report)
    assert pass_.report.fused == KEEPS[keeps][0], str(pass_.report)
