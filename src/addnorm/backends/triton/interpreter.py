"""Three repairs to Triton 3.6's interpreter, made when it is what runs the kernels (``TRITON_INTERPRET=1``).

It truncates float32 to bfloat16 and loses the carry into the exponent, where a GPU rounds to nearest even; it converts
one-element arrays to Python integers in a way that NumPy 2.4 refuses; and it makes the language ready again at each
call of a jit function from another, which takes a third of the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

READY: set[str] = set()
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


def call_jit(function: Any, *args: Any, **kwargs: Any) -> Any:
    """`InterpretedFunction.__call__`, which makes the language ready for a module once; every launch does it too."""
    module = function.fn.__module__
    if module not in READY:
        READY.add(module)
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*args, **kwargs)


def repair() -> None:
    interpreter.InterpretedFunction.__call__ = call_jit
    interpreter.InterpreterBuilder.cast_impl = cast
    interpreter._patch_lang_tensor = patch_tensor
