"""Errors in units of what rounding explains; the checks are in support/precision.py."""

from __future__ import annotations

import pytest

from .support import precision
from .support.calls import routes


@pytest.mark.parametrize("check", precision.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", routes())
def test_exactness(backend: str | None, check: precision.Check) -> None:
    check(backend)
