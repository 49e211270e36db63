"""The policies against their formulas (science section 1), with eps large enough to matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from addnorm import AddNorm, add_norm, add_norm_stream, explain_dispatch
from addnorm.backends import native
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


FORMULAS = {
    "layer": lambda z: torch.nn.functional.layer_norm(z, (17,), eps=EPS),
    "rms": lambda z: torch.nn.functional.rms_norm(z, (17,), eps=EPS),
    "prms": lambda z: z / (z[..., :2].square().mean(-1, keepdim=True) + EPS).sqrt(),  # 2 = ceil(17 / 16)
    "scale": lambda z: z / (z.norm(dim=-1, keepdim=True).square() + EPS).sqrt(),
}


@norms
def test_normalise_is_its_formula(norm: Norm) -> None:
    z = rows()
    torch.testing.assert_close(norm.normalise(z, norm.statistics(z, EPS)), FORMULAS[norm.name](z))


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
    if norm.name == "prms":
        return  # its other columns add to dz . xhat; they are held by the derivative above
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


def test_scale_with_one_gain() -> None:
    """The paper's g, one number for all columns, starts at sqrt(d): the size of a row with unit variance."""
    z, g = rows().requires_grad_(), torch.tensor(17**0.5, dtype=torch.float64, requires_grad=True)
    y = add_norm(z, None, g.expand(17), norm="scale", eps=0.0)
    torch.testing.assert_close(y.norm(dim=-1), torch.full((4, 3), 17**0.5, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda z, g: add_norm(z, z, g.expand(17), norm="scale"), (z, g))


@pytest.mark.parametrize("norm", ["prms", "scale"])
def test_no_kernel_is_said(norm: str) -> None:
    z = rows()
    assert explain_dispatch(z, norm=norm).chosen == "eager"
    if native.EXTENSION is not None:
        with pytest.raises(ValueError, match=f"there is no kernel for norm='{norm}', only for 'layer' and 'rms'"):
            add_norm(z, norm=norm, backend="cpu")
    block = AddNorm(17, norm=norm, dtype=torch.float64)
    assert block.bias is None
    torch.testing.assert_close(block(z, z), add_norm(2 * z, norm=norm))
    weight, bias = torch.rand(17, dtype=torch.float64), torch.rand(17, dtype=torch.float64)
    operands = [t.requires_grad_() for t in (rows((2, 17)), rows((2, 17)), weight, bias)]
    assert torch.autograd.gradcheck(lambda *t: add_norm_stream(*t, norm=norm, weight_offset=1.0), operands)


def test_table_holds_each_norm_by_its_name() -> None:
    assert [norm.name for norm in NORMS.values()] == list(NORMS) == ["layer", "rms", "prms", "scale"]
    assert (NORMS["layer"].bias_by_default, NORMS["rms"].bias_by_default) == (True, False)
