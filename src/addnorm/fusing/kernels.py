"""Whether a kernel takes a call of `add_norm`. Where none does, plain torch would carry it out: more slowly than the
model's own operations, as the reference makes each step apart, and dropout's random numbers in many."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends.eager import Eager
from ..backends.table import KERNELS
from ..functional import explain_dispatch


def taken(x: Tensor, *arguments: Any, **options: Any) -> tuple[str, str]:
    """``(backend, objection)``: which backend takes a call, and why it is better left as it was; "" where it is not."""
    dispatch = explain_dispatch(x, *arguments, **options)
    if dispatch.chosen != Eager.name:
        return dispatch.chosen, ""
    kernels = KERNELS.get(x.device.type)
    why = dispatch.support[kernels].reason if kernels else f"there are none for {x.device.type}"
    return dispatch.chosen, f"no kernel takes it ({why}): `addnorm doctor` says what helps"
