"""Two repairs to Triton 3.6's interpreter, made when it is what runs the kernels (``TRITON_INTERPRET=1``).

It truncates float32 to bfloat16 and loses the carry into the exponent, where a GPU rounds to nearest even; and it
converts one-element arrays to Python integers in a way that NumPy 2.4 refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

CAST, PATCH_TENSOR = interpreter.InterpreterBuilder.cast_impl, interpreter._patch_lang_tensor


def cast(builder: Any, source: Any, target: Any) -> Any:
    """`cast_impl`, with bfloat16 as it should be."""
    here, there = source.dtype.scalar, target.scalar
    if here == tl.bfloat16 and there.is_floating():
        wide = (source.data.astype(np.uint32) << 16).view(np.float32)
        return CAST(builder, interpreter.TensorHandle(wide, tl.float32), target)
    if there == tl.bfloat16 and here.is_floating():
        return interpreter.TensorHandle(to_bfloat16(source.data), tl.bfloat16)
    return CAST(builder, source, target)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even."""
    with np.errstate(over="ignore"):
        bits = np.ascontiguousarray(values.astype(np.float32)).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def patch_tensor(tensor: Any, scope: Any) -> None:
    """`_patch_lang_tensor`, with integers that any NumPy gives."""
    PATCH_TENSOR(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def repair() -> None:
    interpreter.InterpreterBuilder.cast_impl = cast
    interpreter._patch_lang_tensor = patch_tensor
