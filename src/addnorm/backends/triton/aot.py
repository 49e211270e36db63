"""Compiles every row of the launch table ahead of time, for GPUs that need not be there: ``python -m
addnorm.backends.triton.aot --arch 90``. The registers, spills and widths of access are the compiler's own words.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .backward import backward_kernel, means_kernel
from .forward import forward_kernel
from .launch import BACKWARD, FORWARD, MANY, Backward, Forward, backward_for, resident
from .norms import POLICIES

WIDEST = 131072
NAMES = {2: "bf16", 4: "fp32", 8: "fp64"}
MEANS = "means"  # not an option, but the pass that a row needs which is split
# By name, what is asked for beside the plain call: column sums, and extras, which take registers like them (launch.py).
OPTIONS = {"plain": (0, 0), "dropout": (0, 1), "scaled": (1, 2), "everything": (2, 4), MEANS: (0, 0)}
VARIANTS = {"layer": ("plain", "dropout", "everything", MEANS), "rms": ("plain", "scaled", "everything")}
FORWARD_OPTIONS = ("plain", "everything")
Variant = tuple[Forward | Backward, int, int, str, str]
ARGUMENTS_16 = [["tt.divisibility", 16]]
ARCHS = (80, 90, 100)
WARPS, PROGRAMS = 64, 32  # of a multiprocessor, from sm_80 on
SHARED = {80: 164, 90: 228, 100: 228}  # KiB of a multiprocessor, of which a program costs one


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of a kernel, and the accesses to global memory in its PTX."""

    kernel: str
    dtype: str
    width: int
    norm: str
    option: str
    arch: int
    warps: int
    registers: int
    shared: int  # bytes
    spills: int  # bytes
    accesses: dict[str, int]  # how many of each kind
    partials: int  # stores of column sums, one a program, which may have 8 bytes
    asked: int  # programs a multiprocessor that the launch wants, 0: as many as there are

    @property
    def wide(self) -> bool:
        """Whether 16-byte accesses, and none of 8, move the activations; single numbers aside."""
        narrow = {access: count for access, count in self.accesses.items() if "v2.b32" in access}
        stored = sum(count for access, count in narrow.items() if access.startswith("st"))
        sixteen = any("v4.b32" in access or "v2.b64" in access for access in self.accesses)
        return sixteen and stored <= self.partials and stored == sum(narrow.values())

    @property
    def resident(self) -> int:
        """Programs that a multiprocessor holds at once."""
        by_shared = SHARED[self.arch] * 1024 // (self.shared + 1024)
        return min(resident(self.registers, self.warps), by_shared, WARPS // self.warps, PROGRAMS)


def table() -> Iterator[tuple[Forward | Backward, int]]:
    """Every row of the launch tables, with the bytes of its elements."""
    for tables in (FORWARD, BACKWARD):
        for size, rows in tables.items():
            yield from ((row, size) for row in rows)


def variants() -> Iterator[Variant]:
    """Every row, for each of VARIANTS."""
    for row, size in table():
        for norm, options in VARIANTS.items():
            for option in options:
                yield from ((row, size, width, norm, option) for width in widths(row, size, norm, option))


def widths(row: Forward | Backward, size: int, norm: str, option: str) -> list[int]:
    """The widest that the row takes; of the backward, where rows are split, also the widest that one program holds."""
    if isinstance(row, Forward):
        return [min(row.width, WIDEST)] if option in FORWARD_OPTIONS else []
    if option == MEANS:
        return [WIDEST] if splits(row, norm) else []
    ends = {min(row.width, WIDEST), tiles_of(row, WIDEST, norm, option) * row.block, WIDEST}
    return sorted(width for width in ends if backward_for(width, size, sums(norm, option)) == row)


def splits(row: Backward, norm: str) -> bool:
    """Whether a row is ever split over several programs, so that its means are a pass of their own."""
    held = min(tiles_of(row, WIDEST, norm, option) for option in VARIANTS[norm]) * row.block
    return held < row.width or row.width >= MANY


def sums(norm: str, option: str) -> int:
    return 1 + (norm == "layer") + OPTIONS[option][0]


def tiles_of(row: Backward, width: int, norm: str, option: str) -> int:
    return row.tiles(width, sums(norm, option), OPTIONS[option][1])


def source_of(kernel: Any, pointers: dict[str, str], numbers: dict[str, str], constants: dict[str, Any]) -> ASTSource:
    """A kernel's arguments: pointers and strides that are multiples of 16, numbers, constants; the rest is absent."""
    names = kernel.arg_names
    known = pointers | numbers
    constants = {name: None for name in names if name not in known} | constants
    signature = {name: known.get(name, "constexpr") for name in names}
    aligned = [name for name in names if name in pointers or name.endswith("_stride")]
    attrs = {(names.index(name),): ARGUMENTS_16 for name in aligned if name in known}
    return ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attrs)


def types(size: int) -> tuple[str, str, Any]:
    """Pointers to activations and to the arithmetic's type, and that type."""
    return f"*{NAMES[size]}", "*fp64" if size == 8 else "*fp32", tl.float64 if size == 8 else tl.float32


def forward_source(row: Any, size: int, width: int, norm: str, option: str) -> ASTSource:
    element, wide, compute = types(size)
    policy = POLICIES[norm]
    pointers = dict.fromkeys(("x", "residual", "y", "z", "weight", "bias"), element) | {"stats": wide}
    if option != "plain":
        pointers |= {"branch_bias": element, "seed": "*i64"}
    if option == "everything":
        pointers |= dict.fromkeys(("branch_scale", "row_scale"), element)
    numbers = dict.fromkeys(("rows", "x_stride", "residual_stride", "y_stride", "z_stride", "threshold"), "i32")
    numbers |= dict.fromkeys(("eps", "residual_scale", "keep_scale", "weight_offset"), "fp64")
    constants = {
        "STATISTICS": policy.statistics, "NORMALISE": policy.normalise,
        "SHIFTS": policy.shifts, "STATS": policy.stats, "D": width, "SCALAR": False, "ALIGN": 8, "C": compute,
        "ROWS": row.rows, "BLOCK": row.block, "ACCESS": 16 // size, "KEEP": row.keep,
    }  # fmt: skip
    return source_of(forward_kernel, pointers, numbers, constants)


def backward_source(row: Any, size: int, width: int, norm: str, option: str) -> ASTSource:
    element, wide, compute = types(size)
    policy = POLICIES[norm]
    everything = option == "everything"
    tiles, extras = tiles_of(row, width, norm, option), OPTIONS[option][1]
    pointers = dict.fromkeys(("dy", "ds", "z", "weight", "dresidual"), element) | {"stats": wide, "partials": wide}
    if width > tiles * row.block:
        pointers["means"] = wide
    if option != "plain":
        pointers["dx"] = element
    if option in ("dropout", "everything"):
        pointers["seed"] = "*i64"
    if option in ("scaled", "everything"):
        pointers |= dict.fromkeys(("x", "branch_scale", "row_scale", "drow_scale"), element)
    if everything:
        pointers["branch_bias"] = element
    numbers = dict.fromkeys(("rows", "dy_stride", "ds_stride", "z_stride", "x_stride", "threshold"), "i32")
    numbers |= dict.fromkeys(("residual_scale", "keep_scale", "weight_offset"), "fp64")
    constants = {
        "NORMALISE": policy.normalise, "BACKWARD": policy.backward,
        "STATS": policy.stats, "D": width, "SCALAR": False, "ALIGN": 8, "C": compute,
        "WEIGHT": True, "BIAS": norm == "layer", "BRANCH_BIAS": everything, "BRANCH_SCALE": "x" in pointers,
        "ROWS": row.rows, "BLOCK": row.block, "ACCESS": 16 // size, "TILES": tiles, "HELD": row.holds(extras),
    }  # fmt: skip
    return source_of(backward_kernel, pointers, numbers, constants)


def means_source(row: Any, size: int, width: int, norm: str, option: str) -> ASTSource:
    element, wide, compute = types(size)
    policy = POLICIES[norm]
    pointers = dict.fromkeys(("dy", "z", "weight"), element) | dict.fromkeys(("stats", "means"), wide)
    numbers = dict.fromkeys(("rows", "dy_stride", "z_stride"), "i32") | {"weight_offset": "fp64"}
    constants = {
        "NORMALISE": policy.normalise, "STATS": policy.stats, "D": width, "ALIGN": 8, "C": compute,
        "BLOCK": row.means_block(size),
    }  # fmt: skip
    return source_of(means_kernel, pointers, numbers, constants)


SOURCES = {"forward": forward_source, "backward": backward_source, "means": means_source}


def ptxas(ptx: str, arch: int) -> tuple[int, int]:
    """Registers a thread, and bytes spilled, as `ptxas -v` says."""
    tool = triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        target = re.search(r"\.target (sm_\w+)", ptx)
        assert target is not None
        command = [tool.path, "-v", f"--gpu-name={target[1]}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers, spills = re.search(r"Used (\d+) registers", said), re.findall(r"(\d+) bytes spill", said)
    assert registers is not None, said
    return int(registers[1]), sum(map(int, spills))


def compile_row(row: Forward | Backward, size: int, width: int, norm: str, option: str, arch: int) -> Compiled:
    kernel = "forward" if isinstance(row, Forward) else "means" if option == MEANS else "backward"
    source = SOURCES[kernel](row, size, width, norm, option)
    limit = row.registers(OPTIONS[option][1]) if isinstance(row, Backward) and kernel == "backward" else None
    options = {"num_warps": row.warps, "maxnreg": limit}
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = ptxas(binary.asm["ptx"], arch)
    accesses = re.findall(r"(?:(?:ld|st)\.global[.\w:]*|cp\.async\.c[ag][.\w]*)", binary.asm["ptx"])
    asked, partials = 0, 0
    if isinstance(row, Backward) and kernel == "backward":
        asked, partials = row.programs, sums(norm, option) * tiles_of(row, width, norm, option)
    return Compiled(
        kernel, NAMES[size], width, norm, option, arch, row.warps, registers, binary.metadata.shared, spills,
        dict(sorted(Counter(accesses).items())), partials, asked,
    )  # fmt: skip


def compile_all(arch: int, chosen: Iterable[Variant]) -> Iterator[Compiled]:
    """Each variant, in order, by as many processes as there are cores."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(compile_row, *zip(*((*variant, arch) for variant in chosen), strict=True))


COLUMNS = ("kernel", "dtype", "width", "norm", "option", "warps", "registers", "shared bytes", "spilled bytes",
           "programs a multiprocessor")  # fmt: skip


def row_of(c: Compiled) -> str:
    cells = (c.kernel, c.dtype, c.width, c.norm, c.option, c.warps, c.registers, c.shared, c.spills, c.resident)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m addnorm.backends.triton.aot",
        description="Registers, shared memory and spills of every row of the launch table, as Markdown. "
        "Spills, and accesses to activations of other than 16 bytes, fail.",
    )
    parser.add_argument("--arch", type=int, action="append", choices=ARCHS, help="default: 80, 90 and 100")
    archs = parser.parse_args().arch or ARCHS
    found = list(variants())
    print(
        "# The GPU kernels as ptxas sees them\n\nWritten by `make aot`; nothing here was run. What the columns say is"
    )
    print(f"in [gpu.md](gpu.md). Triton {triton.__version__}.")
    wrong = []
    for arch in archs:
        print(f"\n## sm_{arch}\n\n| {' | '.join(COLUMNS)} |\n|-|-|-:|-|-|{'-:|' * 5}", flush=True)
        for done, compiled in enumerate(compile_all(arch, found), 1):
            print(f"[{done}/{len(found)}] sm_{arch}", file=sys.stderr)
            print(row_of(compiled), flush=True)
            if compiled.spills or not compiled.wide:
                wrong.append(compiled)
    for compiled in wrong:
        print(f"spills, or other than 16-byte accesses: {compiled}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
