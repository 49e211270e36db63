"""For tests in which something is fused, which it is only by kernels."""

from __future__ import annotations

import pytest

from addnorm.backends import native

needs_kernels = pytest.mark.skipif(native.EXTENSION is None, reason=f"nothing is fused: {native.REASON}")
