"""Compiles every row of the launch table ahead of time, for GPUs that need not be there: ``python -m
addnorm.backends.triton.aot --arch 90``. The registers, spills and widths of access are the compiler's own words.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .backward import backward_kernel
from .forward import forward_kernel
from .launch import BACKWARD, FORWARD, Backward, Forward
from .norms import POLICIES

WIDEST = 131072
NAMES = {2: "bf16", 4: "fp32", 8: "fp64"}
OPTIONS = ("plain", "dropout", "everything")
ARGUMENTS_16 = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of a kernel, and the accesses to global memory in its PTX."""

    kernel: str
    dtype: str
    width: int
    norm: str
    option: str
    warps: int
    registers: int
    shared: int
    spills: int  # bytes
    accesses: tuple[str, ...]
    narrow: int  # accesses to activations of fewer than 16 bytes

    @property
    def wide(self) -> bool:
        """Whether 16-byte accesses are what moves the activations."""
        return any("v4.b32" in a or "v2.b64" in a or a.startswith("cp.async.cg") for a in self.accesses)


def table() -> Iterator[tuple[Forward | Backward, int]]:
    """Every row of the launch tables with the bytes of its elements."""
    for tables in (FORWARD, BACKWARD):
        for size, rows in tables.items():
            yield from ((row, size) for row in rows)


def compile_row(row: Forward | Backward, size: int, norm: str, option: str, arch: int) -> Compiled:
    """One row, at the widest width that it takes."""
    width = min(row.width, WIDEST)
    build = forward_source if isinstance(row, Forward) else backward_source
    source = build(row, size, width, norm, option)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": row.warps})
    registers, spills = ptxas(binary.asm["ptx"], arch)
    accesses = re.findall(r"(?:(?:ld|st)\.global[.\w:]*|cp\.async\.c[ag][.\w]*)", binary.asm["ptx"])
    kind = "forward" if isinstance(row, Forward) else "backward"
    return Compiled(
        kind, NAMES[size], width, norm, option, row.warps, registers, binary.metadata.shared, spills,
        tuple(sorted(set(accesses))), sum("cp.async.ca" in a for a in accesses),
    )  # fmt: skip


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
        "row_scale_stride": 1, "STATISTICS": policy.statistics, "NORMALISE": policy.normalise,
        "SHIFTS": policy.shifts, "STATS": policy.stats, "D": width, "SCALAR": False, "ALIGN": 8, "C": compute,
        "ROWS": row.rows, "BLOCK": row.block, "KEEP": row.keep,
    }  # fmt: skip
    return source_of(forward_kernel, pointers, numbers, constants)


def backward_source(row: Any, size: int, width: int, norm: str, option: str) -> ASTSource:
    element, wide, compute = types(size)
    policy = POLICIES[norm]
    everything = option == "everything"
    tiles = min(row.tiles, -(-width // row.block))
    pointers = dict.fromkeys(("dy", "ds", "z", "weight", "dresidual"), element) | {"stats": wide, "partials": wide}
    if width > tiles * row.block:
        pointers["means"] = wide
    if option != "plain":
        pointers |= {"dx": element, "seed": "*i64"}
    if option == "everything":
        pointers |= dict.fromkeys(("x", "branch_bias", "branch_scale", "row_scale", "drow_scale"), element)
    numbers = dict.fromkeys(("rows", "dy_stride", "ds_stride", "z_stride", "x_stride", "threshold"), "i32")
    numbers |= dict.fromkeys(("residual_scale", "keep_scale", "weight_offset"), "fp64")
    constants = {
        "row_scale_stride": 1, "NORMALISE": policy.normalise, "BACKWARD": policy.backward,
        "STATS": policy.stats, "D": width, "SCALAR": False, "ALIGN": 8, "C": compute,
        "WEIGHT": True, "BIAS": norm == "layer", "BRANCH_BIAS": everything, "BRANCH_SCALE": everything,
        "ROWS": row.rows, "BLOCK": row.block, "TILES": tiles, "HELD": row.held,
    }  # fmt: skip
    return source_of(backward_kernel, pointers, numbers, constants)


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Registers, shared memory and spills of every row of the launch table")
    parser.add_argument("--arch", type=int, action="append", choices=(80, 90, 100), help="default: 80, 90 and 100")
    archs = parser.parse_args().arch or [80, 90, 100]
    print("| kernel | dtype | width | norm | option | arch | warps | registers | shared bytes | spilled bytes |")
    print("|-|-|-:|-|-|-|-:|-:|-:|-:|")
    spilled = 0
    for arch in archs:
        for row, size in table():
            for norm in POLICIES:
                for option in OPTIONS:
                    c = compile_row(row, size, norm, option, arch)
                    spilled += c.spills
                    print(
                        f"| {c.kernel} | {c.dtype} | {c.width} | {c.norm} | {c.option} | sm_{arch} | {c.warps} "
                        f"| {c.registers} | {c.shared} | {c.spills} |",
                        flush=True,
                    )
    return int(spilled > 0)


if __name__ == "__main__":
    raise SystemExit(main())
