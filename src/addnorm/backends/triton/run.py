"""Cuts calls up into launches of the kernels; loading this file loads Triton."""

from __future__ import annotations

from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from ...call import CALL_TENSORS, GRADIENT_TENSORS, OPERANDS, Call, Gradient, dropout_threshold
from ..base import Plan
from .arguments import itemsize, matrix, steps, vector
from .backward import backward_kernel, means_kernel
from .columns import WIDTH, columns_kernel
from .forward import forward_kernel
from .launch import Backward, Forward, backward_for, forward_for, resident
from .norms import POLICIES
from .start import INTERPRETED, Launch
from .start import trouble as trouble
from .work import Work, on

if INTERPRETED:
    from .interpreter import repair

    repair()

COLUMN_GRADIENTS = ("weight", "bias", "branch_bias", "branch_scale")
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
ACCESS = 16  # bytes that a thread moves at once
PROCESSORS = 4  # that the interpreter plays
RESULTS = ("y", "stream", "stats")
GRADIENTS = tuple(f"d{name}" for name in OPERANDS)


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
    y, z, stats = forward_results(call, keep_stream, keep_stats, out, stream_out)
    if call.x.numel() == 0:
        return y, z, None if stats is None else stats.zero_()
    work = forward_work(call, y, z, stats, launch)
    with on(call.x.device):
        work.start()
    for given, written in ((z, work.memory["stream"]), (y, work.memory["y"])):
        if given is not None and written is not None and given.data_ptr() != written.data_ptr():
            given.copy_(written.view(call.x.shape))
    return y, z, stats


def forward_plan(call: Call, *, keep_stream: bool, keep_stats: bool) -> Plan | None:
    """The forward, to be launched again with other memory, contiguous and aligned."""
    if INTERPRETED or call.x.numel() == 0:
        return None
    results = forward_results(call, keep_stream, keep_stats)
    return forward_work(call, *results).plan(CALL_TENSORS, RESULTS, call.x.device)


def forward_results(
    call: Call, keep_stream: bool, keep_stats: bool, out: Tensor | None = None, stream_out: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    y, z, stats = out, stream_out, None
    if y is None:
        y = like(call.x, call.out_dtype)
    if keep_stream and z is None:
        z = like(call.x, call.stream_dtype)
    if keep_stats:
        stats = call.x.new_empty((*call.x.shape[:-1], POLICIES[call.norm].stats), dtype=call.compute_dtype)
    return y, z, stats


def forward_work(call: Call, y: Tensor, z: Tensor | None, stats: Tensor | None, launch: Forward | None = None) -> Work:
    d, rows = call.x.shape[-1], call.x.shape[:-1].numel()
    policy, compute = POLICIES[call.norm], call.compute_dtype
    matrices = [matrix(t, d) for t in (call.x, call.residual, y, z)]
    size = itemsize(matrices, compute)
    launch = launch or forward_for(d, size)
    strides, align = steps(matrices, d)
    scalar = call.branch_scale is not None and call.branch_scale.dim() == 0
    x, residual, out, stream = matrices
    memory = {
        "x": x, "residual": residual, "weight": vector(call.weight), "bias": vector(call.bias),
        "branch_bias": vector(call.branch_bias), "branch_scale": vector(call.branch_scale),
        "row_scale": by_rows(call, rows), "seed": call.seed, "y": out, "stream": stream, "stats": stats,
    }  # fmt: skip
    return Work(memory, [Launch(
        forward_kernel, (-(-rows // launch.rows), 1, 1), tuple(memory),
        (rows, *strides, dropped(call), call.eps, call.residual_scale, keep_scale(call), call.weight_offset),
        (policy.statistics, policy.normalise, policy.shifts, policy.stats, d, scalar, align, TYPES[compute],
         launch.rows, launch.block, ACCESS // size, launch.keep),
        (call.norm, *strides, d, scalar, align, size, launch), launch.warps,
    )])  # fmt: skip


def backward(call: Gradient, launch: Backward | None = None) -> dict[str, Tensor | None]:
    """The gradients that are needed; by the row of the launch table for the width, or by a given one."""
    grads = {name: place(call, name) if wanted else None for name, wanted in call.needed.items()}
    if call.z.numel() == 0:
        return {name: None if grad is None else grad.zero_() for name, grad in grads.items()}
    scale = grads["branch_scale"]
    scalar = scale is not None and scale.dim() == 0  # its gradient adds up the columns too
    columns = {"branch_scale": call.z.new_empty(call.z.shape[-1:], dtype=call.compute_dtype)} if scalar else {}
    work = backward_work(call, {**grads, **columns}, launch)
    with on(call.z.device):
        work.start()
        if scale is not None and scalar:
            scale.copy_(columns["branch_scale"].sum())
    for name in ("weight", "bias"):
        grad = grads[name]
        if grad is not None and call.dy is None:
            grad.zero_()
    return grads


def backward_plan(call: Gradient) -> Plan | None:
    """The backward, to be launched again with other memory, contiguous and aligned."""
    needed, scale = call.needed, call.branch_scale
    scalar = needed["branch_scale"] and scale is not None and scale.dim() == 0
    zeros = call.dy is None and (needed["weight"] or needed["bias"])
    if INTERPRETED or call.z.numel() == 0 or scalar or zeros:  # what the kernels alone do not finish
        return None
    grads = {name: place(call, name) if wanted else None for name, wanted in needed.items()}
    return backward_work(call, grads).plan(GRADIENT_TENSORS, GRADIENTS, call.z.device)


def backward_work(call: Gradient, grads: dict[str, Tensor | None], launch: Backward | None = None) -> Work:
    """One launch for the gradients, one before it for the means of rows that are split, and those that add up what the
    programs leave: their sums over rows, and over parts of a row."""
    d, needed = call.z.shape[-1], call.needed
    policy, compute = POLICIES[call.norm], call.compute_dtype
    wants_x = needed["branch_scale"] or needed["row_scale"]
    matrices = [matrix(t, d) for t in (call.dy, call.ds, call.z, call.x if wants_x else None)]
    dy, ds, z, x = matrices
    assert z is not None
    size = itemsize([*matrices, grads["x"], grads["residual"]], compute)
    strides, align = steps(matrices, d)
    dy_step, _, z_step, _ = strides
    rows = call.z.numel() // d
    # Without dy nothing arrives at the norm's own parameters.
    summed = [name for name in COLUMN_GRADIENTS if needed[name] and (dy is not None or name.startswith("branch"))]
    launch = launch or backward_for(d, size, len(summed))
    extras = (call.seed is not None) + ("branch_bias" in summed) + 2 * wants_x
    tiles = launch.tiles(d, len(summed), extras)
    splits = -(-d // (tiles * launch.block))
    means = z.new_empty((rows, 2), dtype=compute) if splits > 1 and dy is not None else None
    parts = z.new_empty((1, splits, rows), dtype=compute) if splits > 1 and needed["row_scale"] else None
    scalar = call.branch_scale is not None and call.branch_scale.dim() == 0
    # The partials are empty until the compiled kernel says how many programs there will be.
    memory = {
        "dy": dy, "ds": ds, "z": z, "stats": vector(call.stats), "x": x, "weight": vector(call.weight),
        "branch_bias": vector(call.branch_bias), "branch_scale": vector(call.branch_scale),
        "row_scale": by_rows(call, rows), "seed": call.seed, **{f"d{name}": grad for name, grad in grads.items()},
        "means": means, "partials": z.new_empty(0, dtype=compute) if summed else None, "parts": parts,
    }  # fmt: skip
    flags = tuple([name in summed for name in COLUMN_GRADIENTS])
    main = Launch(
        backward_kernel, (1, splits, 1),
        (*GRADIENT_TENSORS, "means", "dx", "dresidual", "drow_scale" if parts is None else "parts", "partials"),
        (rows, *strides, dropped(call), call.residual_scale, keep_scale(call), call.weight_offset),
        (policy.normalise, policy.backward, policy.stats, d, scalar, align, TYPES[compute], *flags,
         launch.rows, launch.block, ACCESS // size, tiles, launch.holds(extras)),
        (call.norm, *strides, d, scalar, align, size, flags, tiles, extras, launch), launch.warps,
        launch.registers(extras),
    )  # fmt: skip
    room = processors(z.device) * fit(launch, main, memory, z.device) // splits
    programs = max(1, min(-(-rows // launch.rows), room))
    launches = [main._replace(grid=(programs, splits, 1))]
    if means is not None:
        launches.insert(0, Launch(
            means_kernel, (rows, 1, 1), ("dy", "z", "stats", "weight", "means"),
            (rows, dy_step, z_step, call.weight_offset),
            (policy.normalise, policy.stats, d, align, TYPES[compute], launch.means_block(size)),
            (call.norm, dy_step, z_step, d, align, launch), launch.warps,
        ))  # fmt: skip
    if summed:
        memory["partials"] = z.new_empty((len(summed), programs, d), dtype=compute)
        launches.append(columns_launch("partials", tuple(f"d{name}" for name in summed), programs, d))
    if parts is not None:
        launches.append(columns_launch("parts", ("drow_scale",), splits, rows))
    return Work(memory, launches)


def fit(launch: Backward, main: Launch, memory: dict[str, Tensor | None], device: torch.device) -> int:
    """Programs a multiprocessor: those beyond what it holds at once would wait for the first, then run nearly alone."""
    if INTERPRETED:
        return launch.programs
    with on(device):
        return min(launch.programs, resident(main.used_registers(memory), launch.warps))


def columns_launch(partials: str, results: tuple[str, ...], programs: int, width: int) -> Launch:
    grid = -(-width // WIDTH.value), len(results), 1
    specialised = width == 1, width % 16 == 0  # by Triton, and no further: a width may be a number of rows
    return Launch(columns_kernel, grid, (partials, results), (programs, width), (), specialised, 4)


def by_rows(call: Call | Gradient, rows: int) -> Tensor | None:
    """row_scale, one number after the other."""
    return None if call.row_scale is None else vector(call.row_scale.reshape(rows))


def like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of the same shape: the quickest of torch's ways to make one."""
    return torch.empty_like(t, dtype=dtype, memory_format=torch.contiguous_format)


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
