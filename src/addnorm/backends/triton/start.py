"""Starts a kernel: the first call of a kind through Triton, which compiles, the others by the compiled kernel itself.

For each launch Triton looks at every argument, to find the program that was made for its like; that takes longer than
the launch. What its choice depends on is here the key of a table: the device, the pointers' dtypes and alignment, and
`fixed`, which the caller knows to decide the rest.
"""

from __future__ import annotations

from typing import Any

import triton

INTERPRETED = triton.knobs.runtime.interpret
PROGRAMS: dict[Any, Any] = {}
INT32 = 2**31 - 1

Grid = tuple[int, int, int]


def start(
    kernel: Any, grid: Grid, pointers: tuple[Any, ...], numbers: tuple[Any, ...], constants: tuple[Any, ...],
    fixed: tuple[Any, ...], warps: int,
) -> None:  # fmt: skip
    """``kernel[grid](*pointers, *numbers, *constants)``; the first number may need 64 bits."""
    if INTERPRETED:
        kernel[grid](*pointers, *numbers, *constants, num_warps=warps)
        return
    device = triton.runtime.driver.active.get_current_device()
    key = (id(kernel), device, warps, numbers[0] > INT32, fixed, kinds(pointers))
    program = PROGRAMS.get(key)
    if program is None:
        PROGRAMS[key] = kernel[grid](*pointers, *numbers, *constants, num_warps=warps)
    else:
        program[grid](*pointers, *numbers, *constants)


def kinds(pointers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([
        None if p is None else kinds(p) if isinstance(p, tuple) else (p.dtype, p.data_ptr() % 16) for p in pointers
    ])  # fmt: skip
