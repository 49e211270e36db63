"""Published and derived quantities at initialisation: expected value and band, fixed seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from addnorm import Residual, Stack, add_norm

from .support.toys import TOKENS, D, SquareFFN, layers, size

SEEDS = range(3)


def tokens(sentences: int = 8) -> Tensor:
    return nn.functional.layer_norm(torch.randn(sentences, TOKENS, D), (D,))


def sizes(placement: str, count: int, seed: int) -> list[float]:
    """|x|^2 / d of what each norm but the first sees."""
    torch.manual_seed(seed)
    stack = Stack(layers(count), D, placement=placement)
    seen: list[float] = []
    taken, state = stack.placement.start(tokens())
    for site, sublayer in zip(stack.placement.sites, stack.sublayers, strict=True):
        branch = sublayer(taken)
        stream = state if isinstance(state, Tensor) else state[0]
        seen.append(size(stream + branch))
        taken, state = stack.placement.combine(branch, state, site)
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_post_norm_sees_one_and_a_half(seed: int) -> None:
    """1 + 1/2 before the norm of the feed-forward network, in the mean over the layers: tokens grow alike with
    depth, so that one layer's 2 x.f alone can be off by a fifth."""
    found = sizes("post", 12, seed)[1::2]
    assert abs(sum(found) / len(found) - 1.5) < 0.1, found


@pytest.mark.parametrize("seed", SEEDS)
def test_pre_norm_grows_linearly(seed: int) -> None:
    """1 + 1/n + 1/2 behind the first layer, within [1 + l/2, 1 + 3l/2] behind layer l."""
    found = sizes("pre", 48, seed)[1::2]
    assert abs(found[0] - (1 + 1 / TOKENS + 1 / 2)) < 0.05
    assert all(1 + depth / 2 <= grown <= 1 + 3 * depth / 2 for depth, grown in enumerate(found, start=1))


def last_gradient(placement: str, count: int) -> float:
    """The norm of the last matrix' gradient, a mean over seeds, for a loss that is linear in the output."""
    norms = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        stack = Stack(layers(count), D, placement=placement, final_norm=placement == "pre")
        y = stack(tokens(1))
        last = stack.sublayers[-1]
        assert isinstance(last, SquareFFN)
        (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum() / TOKENS**0.5, last.fc2.weight)
        norms.append(gradient.norm().item())
    return sum(norms) / len(norms)


def test_the_last_gradient_over_depth() -> None:
    """Xiong et al. 2020 (arXiv:2002.04745): flat under post-norm, as L^(-1/2) under pre-norm."""
    depths = [2, 6, 16, 48]
    post, pre = ([last_gradient(name, depth) for depth in depths] for name in ("post", "pre"))
    assert max(post) / min(post) < 1.25
    x, y = (torch.tensor(values).double().log() for values in (depths, pre))
    exponent = (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()
    assert abs(exponent + 0.5) < 0.1, exponent


def test_attention_alone_collapses_to_rank_one() -> None:
    """Dong et al. 2021 (arXiv:2103.03404): without skips |X - 1 xbar'| / |X| < 1e-5 by layer 3; with them it stays."""
    generator = torch.Generator().manual_seed(0)
    with_skip = without = torch.randn(TOKENS, D, generator=generator, dtype=torch.float64)
    for _ in range(3):
        q, k, v = (torch.randn(D, D, generator=generator, dtype=torch.float64) * D**-0.5 for _ in range(3))

        def attention(x: Tensor, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return torch.softmax((x @ q) @ (x @ k).T / D, -1) @ x @ v

        without, with_skip = attention(without), add_norm(attention(with_skip), with_skip)
    assert collapse(without) < 1e-5
    assert collapse(with_skip) > 0.1


def collapse(x: Tensor) -> float:
    return ((x - x.mean(0)).norm() / x.norm()).item()


class Detached(nn.Module):
    """A sublayer whose gradient does not flow: what is left is the identity path."""

    def __init__(self, sublayer: nn.Module) -> None:
        super().__init__()
        self.sublayer = sublayer

    def forward(self, x: Tensor) -> Tensor:
        return self.sublayer(x).detach()


def identity_path(placement: str, sublayers: list[nn.Module]) -> tuple[float, float]:
    """The gradient at the input over that at the output, through the skips alone and through all."""
    share = []
    for wrapped in ([Detached(s) for s in sublayers], sublayers):
        torch.manual_seed(1)
        stack = Stack(wrapped, D, placement=placement, final_norm=False, sublayers_per_layer=1)
        x = tokens().requires_grad_()
        y = stack(x)
        g = torch.randn_like(y)
        share.append((torch.autograd.grad(y, x, g)[0].norm() / g.norm()).item())
    return share[0], share[1]


def test_identity_paths() -> None:
    """Post-norm shortens it to the product of (1 + rho_l)^(-1/2), rho = |f|^2/|x|^2, while the gradient through the
    branches stays; pre-norm keeps it at exactly 1."""
    torch.manual_seed(0)
    sublayers: list[nn.Module] = [SquareFFN() for _ in range(48)]
    x, predicted = tokens(), 1.0
    with torch.no_grad():
        for f in sublayers:
            branch = f(x)
            predicted *= (1 + size(branch) / size(x)) ** -0.5
            x = nn.functional.layer_norm(x + branch, (D,))
    post, through_all = identity_path("post", sublayers)
    assert predicted / 2 < post < predicted * 2
    assert 1e-5 < post < 2e-4
    assert through_all > 0.1
    assert identity_path("pre", sublayers)[0] == 1


def test_rezero_at_zero_is_the_identity_bitwise() -> None:
    stack = Stack(layers(6), D, placement="rezero")
    x = tokens(1).requires_grad_()
    y = stack(x)
    assert torch.equal(y, x)
    g = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], g)


def test_zero_initialised_branch_is_the_identity_under_pre_norm() -> None:
    """y = x + f(x) = h(x) with f = h - x: a branch of zeros starts at h = x."""
    linear = nn.Linear(D, D)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    x = tokens(1)
    assert torch.equal(Residual(linear, D, placement="pre")(x), x)


def test_layernorm_scaling_tames_the_growth() -> None:
    """The Curse of Depth (arXiv:2502.05795): the stream's size grows with the logarithm of the depth, not with it: at
    layer l it gains 1/l of what pre-norm gains, 1 + (1/2 + 1/n + ...) H_l."""
    found = sizes("layernorm_scaling", 48, 0)[-1]
    harmonic = sum(1 / depth for depth in range(1, 49))
    assert 1 + harmonic / 2 < found < 1 + 3 * harmonic / 2
    assert found < sizes("pre", 48, 0)[-1] / 5
    assert math.isclose(harmonic, 4.4588, rel_tol=1e-4)
