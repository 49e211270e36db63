"""Mode "modules" of `fuse`: what a module is, by its numbers, where those of the first call tell nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from addnorm.fusing import fuse

pytestmark = pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")
WIDTH = 16


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(WIDTH)), 1e-6

    def normed(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class CentredLayerNorm(Norm):
    """A LayerNorm; the first rows have no mean, so that an RMSNorm gives the same."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normed(x - x.mean(-1, keepdim=True))


class RootRMSNorm(Norm):
    """eps outside the root, which only small rows show."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True).sqrt() + self.eps)


class GatedRMSNorm(Norm):
    """Another parameter, which is 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.weight * self.normed(x)


class UnbiasedRMSNorm(Norm):
    """A bias that is not used, and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normed(x)


class BufferedRMSNorm(Norm):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.weight * self.normed(x)


class NoisyRMSNorm(Norm):
    """Another one in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normed(x) * (1.5 if self.training else 1)


class PlainRMSNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.normed(x)


KINDS = [CentredLayerNorm, RootRMSNorm, GatedRMSNorm, UnbiasedRMSNorm, BufferedRMSNorm, NoisyRMSNorm, PlainRMSNorm]


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    named = dict(model.named_parameters())
    along = torch.linspace(-1, 1, x.numel()).view_as(x)
    found = torch.autograd.grad((model(x) * along).sum(), [*named.values()], allow_unused=True)
    return dict(zip(named, found, strict=True))


def trained(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.add_(torch.linspace(0.5, 1, tensor.numel()).view_as(tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_norms_that_are_another_later(kind: Callable[[], Norm]) -> None:
    first = nn.functional.layer_norm(torch.randn(3, 5, WIDTH), (WIDTH,))
    model = nn.Sequential(kind())
    plain, handle = copy.deepcopy(model), fuse(model, mode="modules")
    for x in (first, first + 2, 1e-6 * first):
        for training in (True, False):
            for each in (model, plain):
                each.train(training)
            torch.testing.assert_close(gradients(model, x), gradients(plain, x))
            torch.testing.assert_close(model(x), plain(x))
        trained(model)
        trained(plain)
    assert handle.report.plain == (kind in (CentredLayerNorm, PlainRMSNorm)), str(handle.report)


CHANGES = {
    "eps becomes an int": (PlainRMSNorm, lambda norm: setattr(norm, "eps", 1)),
    "eps becomes a tensor": (PlainRMSNorm, lambda norm: setattr(norm, "eps", torch.tensor(0.5))),
    "eps goes": (lambda: nn.RMSNorm(WIDTH, eps=0.5), lambda norm: setattr(norm, "eps", None)),
    "the weight is one number": (PlainRMSNorm, lambda norm: setattr(norm, "weight", nn.Parameter(torch.tensor(2.0)))),
    "the weight is a table": (
        PlainRMSNorm,
        lambda norm: setattr(norm, "weight", nn.Parameter(torch.linspace(0, 1, 5 * WIDTH).view(5, WIDTH))),
    ),
    "two dimensions": (
        lambda: nn.RMSNorm(WIDTH, elementwise_affine=False),
        lambda norm: setattr(norm, "normalized_shape", (5, WIDTH)),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_norms_whose_attributes_change(change: str) -> None:
    make, apply = CHANGES[change]
    model, x = nn.Sequential(make()), torch.randn(3, 5, WIDTH)
    plain, handle = copy.deepcopy(model), fuse(model, mode="modules", example=x)
    assert handle.report.plain == 1
    for each in (model, plain):
        apply(each[0])
    torch.testing.assert_close(model(x), plain(x))


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-9))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Parallel(nn.Module):
    """The submodules of timm's block in another order; LayerScale hides it at first."""

    def __init__(self) -> None:
        super().__init__()
        for index, name in ((1, "attn"), (2, "mlp")):
            setattr(self, f"norm{index}", nn.LayerNorm(WIDTH))
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
            setattr(self, f"ls{index}", Branch(WIDTH))
            setattr(self, f"drop_path{index}", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        left = self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + left + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def test_a_block_that_only_looks_like_one() -> None:
    model, x = Parallel(), torch.randn(3, 5, WIDTH)
    plain, handle = copy.deepcopy(model), fuse(model, mode="modules", example=x)
    trained(model)
    trained(plain)
    torch.testing.assert_close(model(x), plain(x))
    assert handle.report.fused == 0


def doubled(module: nn.Module) -> None:
    module.forward = lambda x: 2 * x


REPLACED = {
    "dropout1": lambda layer: setattr(layer, "dropout1", nn.Identity()),
    "dropout2": lambda layer: setattr(layer, "dropout2", nn.Tanh()),
    "the forward of dropout1": lambda layer: doubled(layer.dropout1),
    "the forward of norm2": lambda layer: doubled(layer.norm2),
    "norm1": lambda layer: setattr(layer, "norm1", nn.RMSNorm(WIDTH)),
}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("change", REPLACED)
def test_parts_of_torchs_layers_that_are_replaced(change: str, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    model, x = nn.Sequential(layer), torch.randn(3, 5, WIDTH)
    plain, handle = copy.deepcopy(model), fuse(model, mode="modules")
    model(x)
    assert handle.report.fused
    for each in (model, plain):
        REPLACED[change](each[0])
    torch.testing.assert_close(model(x), plain(x))
    for each in (model, plain):
        each.eval()
    torch.testing.assert_close(model(x), plain(x))
