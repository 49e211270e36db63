"""Starts a kernel: the first call of a kind through Triton, which compiles, the others by the compiled kernel itself.

For each launch Triton looks at every argument, to find the program that was made for its like; that takes longer than
the launch. What its choice depends on is here the key of a table: the device, the pointers' dtypes and alignment, and
`fixed`, which the caller knows to decide the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import triton

from ...words import first_line

INTERPRETED = triton.knobs.runtime.interpret
PROGRAMS: dict[Any, Any] = {}
INT32 = 2**31 - 1


@cache
def trouble() -> str:
    """Why Triton launches nothing on this machine, or nothing: it compiles its launcher here, by a C compiler."""
    try:
        triton.runtime.driver.active  # noqa: B018
    except Exception as error:  # no compiler, no Python headers, no driver: each in a way of its own
        return f"triton does not start: {type(error).__name__}: {first_line(error)}"
    return ""


Grid = tuple[int, int, int]
Names = tuple["str | Names", ...]


class Launch(NamedTuple):
    """What a kernel is started with: ``kernel[grid](*pointers, *numbers, *constants)``, the pointers by the names that
    some memory has them by. The first number may need 64 bits."""

    kernel: Any
    grid: Grid
    pointers: Names
    numbers: tuple[Any, ...]
    constants: tuple[Any, ...]
    fixed: tuple[Any, ...]
    warps: int
    registers: int | None = None  # of a thread, at most

    def start(self, memory: Mapping[str, Any]) -> None:
        pointers = named(self.pointers, memory)
        if INTERPRETED:
            self.kernel[self.grid](*pointers, *self.numbers, *self.constants)
        else:
            self.starter(pointers)(*pointers)

    def starter(self, pointers: tuple[Any, ...]) -> Callable[..., None]:
        """What starts it on the current device, now and later, with pointers like these, which may be addresses.

        ``program[grid]`` would prepare for Triton's launch hooks, a quarter of the host's time, while there are none.
        """
        driver, hooks = triton.runtime.driver.active, triton.knobs.runtime
        device, stream = driver.get_current_device(), driver.get_current_stream
        program = self.program(device, pointers)
        runner, run, function, packed = program[self.grid], program.run, program.function, program.packed_metadata
        x, y, z = self.grid
        rest = (*self.numbers, *self.constants)

        def start(*pointers: Any) -> None:
            if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:
                runner(*pointers, *rest, stream=stream(device))
            else:
                run(x, y, z, stream(device), function, packed, None, None, None, *pointers, *rest)

        return start

    def used_registers(self, memory: Mapping[str, Any]) -> int:
        """Registers a thread of the compiled kernel, which is loaded for it on the current device."""
        device = triton.runtime.driver.active.get_current_device()
        program = self.program(device, named(self.pointers, memory))
        program[self.grid]  # loads
        return program.n_regs

    def program(self, device: int, pointers: tuple[Any, ...]) -> Any:
        """The compiled kernel."""
        key = (id(self.kernel), device, self.warps, self.registers, self.numbers[0] > INT32, self.fixed,
               kinds(pointers))  # fmt: skip
        program = PROGRAMS.get(key)
        if program is None:
            arguments = (*pointers, *self.numbers, *self.constants)
            options = {"num_warps": self.warps, "maxnreg": self.registers}
            program = PROGRAMS[key] = self.kernel.warmup(*arguments, grid=self.grid, **options)
        return program


def named(names: Names, memory: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple([memory[name] if isinstance(name, str) else named(name, memory) for name in names])


def kinds(pointers: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([
        None if p is None else kinds(p) if isinstance(p, tuple) else (p.dtype, p.data_ptr() % 16) for p in pointers
    ])  # fmt: skip
