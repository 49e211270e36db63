"""Memory that was never written holds something that no test can overlook."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

M_PERTURB = -6  # glibc's mallopt: fresh memory is filled with the complement of this byte
FILL = 0x80  # so fresh memory is 0x7f7f...: 3.4e38 as float32 and bfloat16, 1.4e306 as float64, NaN as float16
ENVIRONMENT = {"GLIBC_TUNABLES": f"glibc.malloc.perturb={FILL}:glibc.malloc.tcache_count=0"}
SETTINGS: Any = torch.utils.deterministic


@contextmanager
def poisoned_memory(*, by_torch: bool = True) -> Iterator[None]:
    """torch.empty gives NaN; what C++ takes from malloc is filled too, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    before = torch.are_deterministic_algorithms_enabled(), SETTINGS.fill_uninitialized_memory
    torch.use_deterministic_algorithms(by_torch)
    SETTINGS.fill_uninitialized_memory = by_torch
    if mallopt is not None:
        mallopt(M_PERTURB, FILL)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        SETTINGS.fill_uninitialized_memory = before[1]
        if mallopt is not None:
            mallopt(M_PERTURB, 0)
