"""The policies against their formulas (science section 1), with eps large enough to matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from addnorm.norms import NORMS, Norm

EPS = 0.3
norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def rows(shape: tuple[int, ...] = (4, 3, 17)) -> Tensor:
    return torch.randn(shape, dtype=torch.float64) * 2 + 1


@norms
def test_statistics_have_the_stated_size(norm: Norm) -> None:
    for dtype in (torch.float64, torch.float32):
        stats = norm.statistics(rows().to(dtype), EPS)
        assert stats.shape == (4, 3, norm.stats_per_row)
        assert stats.dtype == dtype


@norms
def test_normalise_is_torch_s_own(norm: Norm) -> None:
    z = rows()
    theirs = {"layer": torch.nn.functional.layer_norm, "rms": torch.nn.functional.rms_norm}[norm.name]
    torch.testing.assert_close(norm.normalise(z, norm.statistics(z, EPS)), theirs(z, (17,), eps=EPS))


@norms
def test_backward_is_the_derivative(norm: Norm) -> None:
    z = rows().requires_grad_()
    g = torch.randn_like(z)
    stats = norm.statistics(z, EPS)
    xhat = norm.normalise(z, stats)
    (want,) = torch.autograd.grad(xhat, z, g)
    torch.testing.assert_close(norm.backward(g, xhat, stats).detach(), want)


@norms
def test_identities_of_a_correct_gradient(norm: Norm) -> None:
    """dz . xhat = (eps / s^3) (G . xhat), and for layer sum(dz) = 0: exact, eps included."""
    z, g = rows(), rows()
    stats = norm.statistics(z, EPS)
    xhat = norm.normalise(z, stats)
    dz, r = norm.backward(g, xhat, stats), stats[..., -1]
    torch.testing.assert_close((dz * xhat).sum(-1), EPS * r**3 * (g * xhat).sum(-1))
    if norm.name == "layer":
        torch.testing.assert_close(dz.sum(-1), torch.zeros(4, 3, dtype=torch.float64))


def test_layer_bounds() -> None:
    """Mean 0, variance v / (v + eps), and |xhat| <= sqrt(d - 1), which a one-hot row attains."""
    norm, z = NORMS["layer"], rows()
    xhat = norm.normalise(z, norm.statistics(z, EPS))
    v = z.var(-1, correction=0)
    torch.testing.assert_close(xhat.mean(-1), torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(xhat.var(-1, correction=0), v / (v + EPS))
    one_hot = torch.zeros(512, dtype=torch.float64).index_fill_(0, torch.tensor(7), 1.0)
    assert abs(norm.normalise(one_hot, norm.statistics(one_hot, 0.0)).max() - 511**0.5) < 1e-12


def test_table_holds_each_norm_by_its_name() -> None:
    assert {name: norm.name for name, norm in NORMS.items()} == {"layer": "layer", "rms": "rms"}
    assert (NORMS["layer"].bias_by_default, NORMS["rms"].bias_by_default) == (True, False)
