"""Norms written out in a model: told from what only looks like one, however their operations are called."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F  # noqa: N812

import addnorm

from .support.small import assert_as_good, results

WIDTH = 64
NOTHING = "ignore:addnorm.fuse found nothing:UserWarning"  # none with its sum
Function = Callable[[Tensor], Tensor]
ONES = torch.ones(WIDTH).numpy()


class Written(nn.Module):
    """LayerNorm; `subtract` takes the mean away."""

    def __init__(self, subtract: Callable[[Tensor, Tensor], Tensor] = torch.sub) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.rand(WIDTH))
        self.subtract = subtract

    def forward(self, h: Tensor) -> Tensor:
        centred = self.subtract(h, h.mean(-1, keepdim=True))
        return self.weight * (centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)) + self.bias


class OfSum(nn.Module):
    """`function` of a sum with dropout, whose rate is so small that it drops nothing."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(WIDTH, WIDTH), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x + F.dropout(self.linear(x), 1e-6, True))


@pytest.mark.filterwarnings(NOTHING)
@pytest.mark.parametrize("last", [nn.LayerNorm(WIDTH), Written()], ids=["torch's", "written"])
def test_a_norm_of_a_norm(last: nn.Module) -> None:
    """The bias that ends the first is no sum before the second."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Written(), last)
    inputs = {"input": torch.randn(2, 5, WIDTH)}
    before, exact = results(model, inputs), results(copy.deepcopy(model).double(), {"input": inputs["input"].double()})
    handle = addnorm.fuse(model)
    results(model, inputs)
    assert_as_good(results(model, inputs), before, exact)
    assert handle.report.sites, "the norms were not seen"
    assert not any("add" in site.folded for site in handle.report.sites)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize(
    ("subtract", "fused"),
    [
        (torch.sub, 1),
        (lambda h, mean: torch.sub(h, mean, alpha=2), 0),
        (lambda h, mean: torch.sub(input=h, other=mean, alpha=2), 0),
    ],
)
def test_a_difference_with_a_factor_is_no_norm(subtract: Callable[[Tensor, Tensor], Tensor], fused: int) -> None:
    model, x, fuse_pass = OfSum(Written(subtract)), torch.randn(2, 5, WIDTH) + 3, addnorm.FusePass()
    torch._dynamo.reset()
    with torch.no_grad(), fresh_cache():  # compiled code from before would go through no pass
        want = model(x)
        got = torch.compile(model, options={"pre_grad_custom_pass": fuse_pass})(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert fuse_pass.fused == fused


BY_NAME: dict[str, Function] = {
    "no norm": lambda h: h.abs().sqrt() * torch.sqrt(input=h.abs()),
    "rsqrt": lambda h: h * torch.rsqrt(input=h.pow(2).mean(-1, keepdim=True) + 1e-6),
    "mean": lambda h: h * torch.rsqrt(torch.mean(input=h * h, dim=-1, keepdim=True) + 1e-6),
    "square": lambda h: h * torch.rsqrt(torch.square(input=h).mean(-1, keepdim=True) + 1e-6),
    "pow": lambda h: h * torch.rsqrt(torch.pow(input=h, exponent=2).mean(-1, keepdim=True) + 1e-6),
    "var": lambda h: (h - h.mean(-1, True)) / torch.sqrt(torch.var(input=h, dim=-1, correction=0, keepdim=True) + 1e-5),
    "tensor": lambda h: F.layer_norm(torch.tensor(data=ONES) + h, (WIDTH,)),
}


@pytest.mark.filterwarnings(NOTHING)
@pytest.mark.parametrize("name", BY_NAME)
def test_operands_by_name(name: str) -> None:
    model, x = OfSum(BY_NAME[name]), torch.randn(2, 5, WIDTH)
    want = model(x)
    addnorm.fuse(model)
    for _ in range(2):
        torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-4)
