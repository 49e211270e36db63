"""Starts a kernel: the first call of a kind through Triton, which compiles, the others by the compiled kernel itself.

For each launch Triton looks at every argument, to find the program that was made for its like; that takes longer than
the launch. What its choice depends on is here the key of a table: the device, the pointers' dtypes and alignment, and
`fixed`, which the caller knows to decide the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import triton

INTERPRETED = triton.knobs.runtime.interpret
PROGRAMS: dict[Any, Any] = {}
INT32 = 2**31 - 1


@cache
def trouble() -> str:
    """Why Triton launches nothing on this machine, or nothing: it compiles its launcher here, by a C compiler."""
    try:
        triton.runtime.driver.active  # noqa: B018
    except Exception as error:  # no compiler, no Python headers, no driver: each in a way of its own
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return f"triton does not start: {type(error).__name__}: {first_line}"
    return ""


Grid = tuple[int, int, int]


class Launch(NamedTuple):
    """What a kernel is started with: ``kernel[grid](*pointers, *numbers, *constants)``. The first number may need 64
    bits."""

    kernel: Any
    grid: Grid
    pointers: tuple[Any, ...]
    numbers: tuple[Any, ...]
    constants: tuple[Any, ...]
    fixed: tuple[Any, ...]
    warps: int
    registers: int | None = None  # of a thread, at most

    def start(self) -> None:
        arguments = (*self.pointers, *self.numbers, *self.constants)
        if INTERPRETED:
            self.kernel[self.grid](*arguments)
            return
        driver = triton.runtime.driver.active
        stream = driver.get_current_stream(driver.get_current_device())
        starter(self.program(), self.grid)(stream, *arguments)

    def program(self) -> Any:
        """The compiled kernel."""
        device = triton.runtime.driver.active.get_current_device()
        key = (id(self.kernel), device, self.warps, self.registers, self.numbers[0] > INT32, self.fixed,
               kinds(self.pointers))  # fmt: skip
        program = PROGRAMS.get(key)
        if program is None:
            arguments = (*self.pointers, *self.numbers, *self.constants)
            options = {"num_warps": self.warps, "maxnreg": self.registers}
            program = PROGRAMS[key] = self.kernel.warmup(*arguments, grid=self.grid, **options)
        return program


def starter(program: Any, grid: Grid) -> Callable[..., None]:
    """``program[grid]`` given the stream first; without the preparations for Triton's launch hooks, a quarter of the
    host's time, while there are none."""
    runner, run, function, packed = program[grid], program.run, program.function, program.packed_metadata
    hooks = triton.knobs.runtime

    def start(stream: int, *arguments: Any) -> None:
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
            runner(*arguments, stream=stream)
        else:
            run(*grid, stream, function, packed, None, None, None, *arguments)

    return start


def kinds(pointers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([
        None if p is None else kinds(p) if isinstance(p, tuple) else (p.dtype, p.data_ptr() % 16) for p in pointers
    ])  # fmt: skip
