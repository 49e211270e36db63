"""Launches the kernels; loading this file loads Triton."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...call import Call, Gradient, dropout_threshold
from ..base import Plan
from .arguments import itemsize, matrix, steps, vector
from .backward import backward_kernel, means_kernel
from .columns import WIDTH, columns_kernel
from .forward import forward_kernel
from .launch import Backward, Forward, backward_for, forward_for
from .norms import POLICIES
from .start import INTERPRETED, Launch, starter
from .start import trouble as trouble

if INTERPRETED:
    from .interpreter import repair

    repair()

COLUMN_GRADIENTS = ("weight", "bias", "branch_bias", "branch_scale")
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
ACCESS = 16  # bytes that a thread moves at once
PROCESSORS = 4  # that the interpreter plays
HERE = contextlib.nullcontext()


def forward(
    call: Call,
    *,
    keep_stream: bool,
    keep_stats: bool,
    out: Tensor | None = None,
    stream_out: Tensor | None = None,
    launch: Forward | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, the stream and the statistics; by the row of the launch table for the width, or by a given one."""
    shape, d = call.x.shape, call.x.shape[-1]
    y = like(call.x, call.out_dtype) if out is None else out
    z = stream_out
    if keep_stream and z is None:
        z = like(call.x, call.stream_dtype)
    stats = call.x.new_empty((*shape[:-1], POLICIES[call.norm].stats), dtype=call.compute_dtype) if keep_stats else None
    if call.x.numel() == 0:
        return y, z, None if stats is None else stats.zero_()
    rows = [matrix(t, d) for t in (call.x, call.residual, y, z)]
    with on(call.x):
        forward_launch(call, rows, stats, launch).start()
    for given, written in ((z, rows[3]), (y, rows[2])):
        if given is not None and written is not None and given.data_ptr() != written.data_ptr():
            given.copy_(written.view(shape))
    return y, z, stats


def forward_launch(
    call: Call, matrices: list[Tensor | None], stats: Tensor | None, launch: Forward | None = None
) -> Launch:
    """The forward of matrices: x, the residual, y and the stream."""
    d, rows = call.x.shape[-1], call.x.shape[:-1].numel()
    policy, compute = POLICIES[call.norm], call.compute_dtype
    x, residual, y, z = matrices
    size = itemsize(matrices, compute)
    launch = launch or forward_for(d, size)
    strides, align = steps(matrices, d)
    row_scale = vector(None if call.row_scale is None else call.row_scale.reshape(rows))
    weight, bias, branch_bias, branch_scale = map(vector, (call.weight, call.bias, call.branch_bias, call.branch_scale))
    scalar = branch_scale is not None and branch_scale.dim() == 0
    return Launch(
        forward_kernel, (-(-rows // launch.rows), 1, 1),
        (x, residual, weight, bias, branch_bias, branch_scale, row_scale, call.seed, y, z, stats),
        (rows, *strides, 1, dropped(call), call.eps, call.residual_scale, keep_scale(call), call.weight_offset),
        (policy.statistics, policy.normalise, policy.shifts, policy.stats, d, scalar, align, TYPES[compute],
         launch.rows, launch.block, ACCESS // size, launch.keep),
        (call.norm, *strides, d, scalar, align, size, launch), launch.warps,
    )  # fmt: skip


def plan(call: Call, *, keep_stream: bool) -> Plan | None:
    """The forward without dropout or statistics, to be launched again with other memory, contiguous and aligned."""
    spread = call.row_scale is not None and not call.row_scale.is_contiguous()  # fewer numbers than rows
    if INTERPRETED or spread or call.dropout_p or call.x.numel() == 0:
        return None
    device = call.x.device.index
    empty_y, empty_z = empty(call.x, call.out_dtype), empty(call.x, call.stream_dtype)
    launch = forward_launch(
        call, [call.x, call.residual, empty_y(call.x), empty_z(call.x) if keep_stream else None], None
    )
    with on(call.x):  # where the program is also loaded
        start, rest = starter(launch.program(), launch.grid), (None, *launch.numbers, *launch.constants)
    driver = triton.runtime.driver.active
    current_device, current_stream = driver.get_current_device, driver.get_current_stream

    def again(x: Tensor, addresses: Sequence[int | None]) -> tuple[Tensor, Tensor]:
        y, z = empty_y(x), empty_z(x) if keep_stream else None
        z_address = None if z is None else z.data_ptr()
        with HERE if current_device() == device else torch.cuda.device(device):
            start(current_stream(device), *addresses, None, y.data_ptr(), z_address, *rest)
        return y, y if z is None else z

    return again


def backward(call: Gradient, launch: Backward | None = None) -> dict[str, Tensor | None]:
    """The gradients that are needed; by the row of the launch table for the width, or by a given one."""
    d, needed = call.z.shape[-1], call.needed
    policy, compute = POLICIES[call.norm], call.compute_dtype
    grads = {name: place(call, name) if wanted else None for name, wanted in needed.items()}
    if call.z.numel() == 0:
        return {name: None if grad is None else grad.zero_() for name, grad in grads.items()}
    wants_x = needed["branch_scale"] or needed["row_scale"]
    matrices = [matrix(t, d) for t in (call.dy, call.ds, call.z, call.x if wants_x else None)]
    dy, ds, z, x = matrices
    size = itemsize([*matrices, grads["x"], grads["residual"]], compute)
    unit_steps, align = steps(matrices, d)
    dy_step, _, z_step, _ = unit_steps
    rows = call.z.numel() // d
    # Without dy nothing arrives at the norm's own parameters.
    summed = [name for name in COLUMN_GRADIENTS if needed[name] and (dy is not None or name.startswith("branch"))]
    launch = launch or backward_for(d, size, len(summed))
    extras = (call.seed is not None) + ("branch_bias" in summed) + 2 * wants_x
    tiles = launch.tiles(d, len(summed), extras)
    splits = -(-d // (tiles * launch.block))
    programs = max(1, min(-(-rows // launch.rows), processors(z.device) * launch.programs // splits))
    partials = z.new_empty((len(summed), programs, d), dtype=compute) if summed else None
    by_row = grads["row_scale"]
    if by_row is not None and splits > 1:
        by_row = z.new_empty((1, splits, rows), dtype=compute)
    means = z.new_empty((rows, 2), dtype=compute) if splits > 1 and dy is not None else None
    row_scale = vector(None if call.row_scale is None else call.row_scale.reshape(rows))
    weight, branch_bias, branch_scale = map(vector, (call.weight, call.branch_bias, call.branch_scale))
    scalar = branch_scale is not None and branch_scale.dim() == 0
    flags = tuple([name in summed for name in COLUMN_GRADIENTS])
    with on(z):
        if means is not None:
            Launch(
                means_kernel, (rows, 1, 1), (dy, z, call.stats, weight, means),
                (rows, dy_step, z_step, call.weight_offset),
                (policy.normalise, policy.stats, d, align, TYPES[compute], launch.means_block(size)),
                (call.norm, dy_step, z_step, d, align, launch), launch.warps,
            ).start()  # fmt: skip
        Launch(
            backward_kernel, (programs, splits, 1),
            (dy, ds, z, call.stats, x, weight, branch_bias, branch_scale, row_scale, call.seed, means,
             grads["x"], grads["residual"], by_row, partials),
            (rows, *unit_steps, 1, dropped(call), call.residual_scale, keep_scale(call), call.weight_offset),
            (policy.normalise, policy.backward, policy.stats, d, scalar, align, TYPES[compute], *flags,
             launch.rows, launch.block, ACCESS // size, tiles, launch.holds(extras)),
            (call.norm, *unit_steps, d, scalar, align, size, flags, tiles, extras, launch), launch.warps,
            launch.registers(extras),
        ).start()  # fmt: skip
        if partials is not None:
            add_columns(partials, summed, grads)
        if by_row is not grads["row_scale"] and by_row is not None:
            start_columns(by_row, (grads["row_scale"],), splits, rows)
    for name in ("weight", "bias"):
        grad = grads[name]
        if grad is not None and name not in summed:
            grad.zero_()
    return grads


def add_columns(partials: Tensor, summed: list[str], grads: dict[str, Tensor | None]) -> None:
    """The partial sums into the gradients; that of a scalar scale adds up the columns too."""
    _, programs, d = partials.shape
    scale = grads["branch_scale"]
    results = {name: grads[name] for name in summed}
    if scale is not None and scale.dim() == 0:
        results["branch_scale"] = partials.new_empty((d,))
    start_columns(partials, tuple(results.values()), programs, d)
    if scale is not None and scale.dim() == 0:
        scale.copy_(results["branch_scale"].sum())


def start_columns(partials: Tensor, results: tuple[Any, ...], programs: int, width: int) -> None:
    grid = -(-width // WIDTH.value), 1, 1
    specialised = width == 1, width % 16 == 0  # by Triton, and no further: a width may be a number of rows
    Launch(columns_kernel, grid, (partials, results), (programs, width), (), specialised, 4).start()


def like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of the same shape: the quickest of torch's ways to make one."""
    return torch.empty_like(t, dtype=dtype, memory_format=torch.contiguous_format)


def empty(x: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What makes tensors like the contiguous x, of a dtype; not to name it is a third quicker."""
    return torch.empty_like if dtype == x.dtype else partial(torch.empty_like, dtype=dtype)


def place(call: Gradient, name: str) -> Tensor:
    """Where an operand's gradient goes."""
    if name in ("x", "residual"):
        return like(call.z, call.x_dtype if name == "x" else call.residual_dtype)
    if name == "bias":
        return call.z.new_empty(call.z.shape[-1:], dtype=call.bias_dtype)
    operand = getattr(call, name)
    return like(operand, operand.dtype)


def dropped(call: Call | Gradient) -> int:
    return dropout_threshold(call.dropout_p) if call.seed is not None else 0


def keep_scale(call: Call | Gradient) -> float:
    return 1 / (1 - call.dropout_p)


@cache
def processors(device: torch.device) -> int:
    return PROCESSORS if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def on(t: Tensor) -> Any:
    """Kernels run on the current device: make it t's, where it is another."""
    elsewhere = t.is_cuda and t.device.index != torch.cuda.current_device()
    return torch.cuda.device(t.device) if elsewhere else HERE
