"""Tunes the launch table on a GPU: ``python -m addnorm.backends.triton.tune`` times, for each of its rows, the row
itself and others like it that do not spill, and prints the table with the quickest, to be put into launch.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from triton import OutOfResources

from ...call import Gradient, describe
from ...cuda_clock import CudaClock
from . import run
from .aot import compile_row
from .launch import ANY, BACKWARD, FORWARD, Backward, Forward

Row = Forward | Backward
Measure = Callable[[Mapping[str, Row], int], Mapping[str, float]]  # candidates by name, bytes an element: seconds
Spills = Callable[[Row, int], int]

NAMES = {2: "HALF", 4: "SINGLE", 8: "DOUBLE"}
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
LARGE = 1 << 28  # bytes of one activation
WIDE = 32768  # where the rows for any width are tuned
MOST = 64  # elements of a row that a thread may keep
GAIN = 0.01  # by which another row must be quicker than the present one: less is noise
ROUNDS, BUDGET = 25, 2.0


def candidates(row: Row, size: int) -> list[Row]:
    """The row, then rows of the same width that share their work out otherwise, each thread moving 16 bytes at once."""
    found = [row, *(forwards(row, size) if isinstance(row, Forward) else backwards(row, size))]
    return list(dict.fromkeys(found))


def forwards(row: Forward, size: int) -> Iterator[Forward]:
    for warps, rows, block in shapes(row, size):
        # Several rows that are not kept would take one another's second look at the mean: no longer independent.
        for keep in (True, False) if rows == 1 else (True,):
            if not keep or tuned_width(row) * rows <= MOST * warps * 32:
                yield dataclasses.replace(row, warps=warps, rows=rows, block=block, keep=keep)


def backwards(row: Backward, size: int) -> Iterator[Backward]:
    for warps, rows, block in shapes(row, size):
        room = row.room * row.block // block
        for held in (0, 1, 2) if rows == 1 else (1, 2):
            for programs in (1, 2, 4, 8):
                if room and programs * warps in (8, 16, 32):
                    yield dataclasses.replace(
                        row, warps=warps, rows=rows, block=block, room=room, held=held, programs=programs
                    )


def shapes(row: Row, size: int) -> Iterator[tuple[int, int, int]]:
    """Warps, rows and block: of narrow rows several a program, of wide ones one, in blocks of one access or two."""
    if row.rows > 1:
        for warps in (2, 4, 8):
            for rows in (row.rows // 2, row.rows, 2 * row.rows):
                if rows > 1 and rows * row.block * size >= 16 * 32 * warps:
                    yield warps, rows, row.block
        return
    for warps in (1, 2, 4, 8, 16):
        for accesses in (1, 2):
            block = 16 // size * 32 * warps * accesses
            if block < 2 * tuned_width(row):
                yield warps, 1, block


def tuned_width(row: Row) -> int:
    return WIDE if row.width == ANY else row.width


def retune(
    tables: Mapping[int, tuple[Row, ...]], measure: Measure, spills: Spills, say: Callable[[str], object]
) -> dict[int, tuple[Row, ...]]:
    """The tables with the quickest row that does not spill, for each of theirs."""
    return {size: tuple(quickest(row, size, measure, spills, say) for row in rows) for size, rows in tables.items()}


def quickest(row: Row, size: int, measure: Measure, spills: Spills, say: Callable[[str], object]) -> Row:
    fit = {str(i): other for i, other in enumerate(candidates(row, size)) if i == 0 or spills(other, size) == 0}
    seconds = measure(fit, size)
    best = min(seconds, key=lambda name: seconds[name])
    best = best if seconds[best] < (1 - GAIN) * seconds["0"] else "0"
    say(f"{literal(row)}: {seconds['0']:.4g} s; {literal(fit[best])}: {seconds[best]:.4g} s, of {len(fit)}")
    return fit[best]


# -- on the GPU ------------------------------------------------------------------------------------------


def spilled(row: Row, size: int) -> int:
    """Bytes that the row spills on the current device, with LayerNorm and nothing else."""
    major, minor = torch.cuda.get_device_capability()
    return compile_row(row, size, tuned_width(row), "layer", "plain", 10 * major + minor).spills


def timed(clock: CudaClock) -> Measure:
    """Seconds by a clock, in a stream of its own."""

    def measure(rows: Mapping[str, Row], size: int) -> Mapping[str, float]:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            calls = workload(rows, size, "cuda", LARGE)
            able = {name: call for name, call in calls.items() if starts(call)}
            return clock.times(able, rounds=ROUNDS, budget=BUDGET)[0]

    return measure


def starts(call: Callable[[], object]) -> bool:
    """Whether a multiprocessor has what the launch asks for."""
    try:
        call()
    except OutOfResources:
        return False
    return True


def workload(rows: Mapping[str, Row], size: int, device: str, nbytes: int) -> dict[str, Callable[[], Any]]:
    """What is timed: a LayerNorm of a sum that keeps the stream, or its backward, on activations of so many bytes."""
    width = tuned_width(next(iter(rows.values())))
    shape = (max(1, nbytes // (width * size)), width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float32).to(DTYPES[size])

    call = describe(normal(*shape), normal(*shape), normal(width), normal(width))
    _, z, stats = run.forward(call, keep_stream=True, keep_stats=True)
    assert z is not None
    assert stats is not None
    dtype = DTYPES[size]
    gradient = Gradient(
        dy=normal(*shape), ds=None, z=z, stats=stats, weight=call.weight, norm="layer", eps=1e-5, residual_scale=1.0,
        dropout_p=0.0, weight_offset=0.0, x_dtype=dtype, residual_dtype=dtype, bias_dtype=dtype,
        needs=[False, True, True, True, False, False, False],
    )  # fmt: skip

    def carry_out(row: Row) -> Callable[[], Any]:
        if isinstance(row, Forward):
            return lambda: run.forward(call, keep_stream=True, keep_stats=True, launch=row)
        return lambda: run.backward(gradient, launch=row)

    return {name: carry_out(row) for name, row in rows.items()}


# -- as text ---------------------------------------------------------------------------------------------


def literal(row: Row) -> str:
    """The row as launch.py has it."""
    values = dataclasses.asdict(row)
    shown = [
        "ANY" if row.width == ANY else str(row.width),
        *(str(v) for k, v in values.items() if k not in ("width", "keep")),
    ]
    if values.get("keep") is False:
        shown.append("keep=False")
    return f"{type(row).__name__}({', '.join(shown)})"


def text(tables: Mapping[int, tuple[Row, ...]]) -> str:
    """The tables as launch.py has them."""
    return "\n".join(line for size, rows in tables.items() for line in table_lines(size, rows))


def table_lines(size: int, rows: Iterable[Row]) -> Iterator[str]:
    rows = tuple(rows)
    yield f"{NAMES[size]}_{type(rows[0]).__name__.upper()} = ("
    yield from (f"    {literal(row)}," for row in rows)
    yield ")"


def taken(rows: tuple[Row, ...], widths: list[int] | None) -> tuple[Row, ...]:
    """All rows, or those that some widths take."""
    if widths is None:
        return rows
    return tuple(dict.fromkeys(next(row for row in rows if width <= row.width) for width in sorted(widths)))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m addnorm.backends.triton.tune",
        description="Times every row of the launch table, and others, on this GPU; prints the quickest for launch.py.",
    )
    parser.add_argument("--bytes", type=int, action="append", choices=(2, 4, 8), help="of an element; default: 2 and 4")
    parser.add_argument("--width", type=int, action="append", help="only the rows that these widths take")
    parser.add_argument("--only", choices=("forward", "backward"), help="default: both")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"tune: torch {torch.__version__} sees no CUDA device", file=sys.stderr)
        return 1
    measure = timed(CudaClock())
    for name, tables in (("forward", FORWARD), ("backward", BACKWARD)):
        if args.only in (None, name):
            chosen = {size: taken(tables[size], args.width) for size in args.bytes or (2, 4)}
            print(text(retune(chosen, measure, spilled, lambda line: print(line, file=sys.stderr))), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
