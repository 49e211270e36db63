"""From a call's tensors to what a kernel is given: matrices of rows, strides in aligned units."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGN = 8  # elements


def matrix(t: Tensor | None, width: int) -> Tensor | None:
    """(rows, width) with neighbouring columns; the same memory where its strides allow, else a copy."""
    if t is None:
        return None
    flat = t.detach().reshape(t.shape[:-1].numel(), width)
    return flat if width == 1 or flat.stride(1) == 1 else flat.contiguous()


def vector(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().contiguous()


def unit(matrices: list[Tensor | None], width: int) -> int:
    """How many elements all rows are known to be multiples of, 16-byte accesses in mind."""
    steps = [width, *(m.stride(0) for m in matrices if m is not None)]
    return ALIGN if all(step % ALIGN == 0 for step in steps) else 1


def strides(matrices: list[Tensor | None], align: int) -> list[int]:
    return [0 if m is None else m.stride(0) // align for m in matrices]


def itemsize(matrices: list[Tensor | None], compute: torch.dtype) -> int:
    """Of the widest activation; 8 wherever the arithmetic is float64."""
    if compute == torch.float64:
        return 8
    return max(m.element_size() for m in matrices if m is not None)
