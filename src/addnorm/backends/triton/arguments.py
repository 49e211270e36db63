"""From a call's tensors to what a kernel is given: rows with neighbouring columns, strides in aligned units.

Every call goes through here, however small, so that nothing is made that a contiguous tensor does not need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import ALIGN


def matrix(t: Tensor | None, width: int) -> Tensor | None:
    """The tensor itself where it is contiguous, else ``(rows, width)`` with neighbouring columns: the same memory where
    its strides allow, else a copy."""
    if t is None or t.is_contiguous():
        return t
    flat = t.reshape(t.shape[:-1].numel(), width)
    return flat if width == 1 or flat.stride(1) == 1 else flat.contiguous()


def vector(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def steps(matrices: list[Tensor | None], width: int) -> tuple[list[int], int]:
    """From row to row of each matrix, in units of elements, and that unit: how many elements all rows are known to be
    multiples of, 16-byte accesses in mind."""
    strides = [0 if m is None else width if m.is_contiguous() else m.stride(0) for m in matrices]
    unit = ALIGN if width % ALIGN == 0 and all(stride % ALIGN == 0 for stride in strides) else 1
    return [stride // unit for stride in strides], unit


def itemsize(matrices: list[Tensor | None], compute: torch.dtype) -> int:
    """Of the widest activation; 8 wherever the arithmetic is float64."""
    if compute == torch.float64:
        return 8
    return max(m.element_size() for m in matrices if m is not None)
