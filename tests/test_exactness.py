"""Errors in units of what rounding explains; the checks are in support/precision.py."""

from __future__ import annotations

import pytest
import torch

from addnorm import add_norm

from .support import precision
from .support.calls import routes


@pytest.mark.parametrize("check", precision.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", routes())
def test_exactness(backend: str | None, check: precision.Check) -> None:
    check(backend)


@pytest.mark.parametrize("backend", routes())
def test_column_sums_of_a_million_rows(backend: str | None) -> None:
    """At most 64 rows, 256 such groups and 6 levels of blocks are added one after another, each rounded once."""
    x, bias = torch.ones(2**20, 8), torch.zeros(8, requires_grad=True)
    dy = torch.full_like(x, 0.1)
    (got,) = torch.autograd.grad(add_norm(x, None, None, bias, backend=backend), bias, dy)
    want = dy[0].double() * len(dy)
    assert ((got - want) / want).abs().max() <= (64 + 256 + 6) * 2**-24
