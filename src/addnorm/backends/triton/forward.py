"""The forward: one text for every norm, option, dtype and width.

A program takes ROWS rows, each in tiles of BLOCK columns. Up to a width that the registers hold (KEEP), z stays there
between the statistics and the results; beyond, z is made again from the inputs, which the L2 cache still has, so that
y comes from the unrounded z and both results may lie over the inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .norms import divide
from .philox import keep


@triton.jit
def load(pointer, offset, cols, inside, D: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr):
    """A tile in the arithmetic's type; no mask on the columns where the width is a whole number of tiles."""
    place = pointer + offset + cols
    mask = inside if WHOLE else (cols < D if inside is None else inside & (cols < D))
    return tl.load(place, mask=mask, other=None if mask is None else 0.0).to(C)


@triton.jit
def store(pointer, offset, cols, inside, value, D: tl.constexpr, WHOLE: tl.constexpr):
    value, place = value.to(pointer.dtype.element_ty), pointer + offset + cols
    mask = inside if WHOLE else (cols < D if inside is None else inside & (cols < D))
    tl.store(place, value, mask=mask)


@triton.jit
def within(value, cols, D: tl.constexpr, WHOLE: tl.constexpr):
    """Zero beyond the row, where a mean is subtracted from the zeros that were loaded: 0 times infinity is NaN."""
    return value if WHOLE else tl.where(cols < D, value, 0.0)


@triton.jit
def tile(
    x, residual, branch_bias, branch_scale, row_scale, seed,
    row, inside, x_stride, residual_stride, first, threshold, residual_scale, keep_scale,
    D: tl.constexpr, SCALAR: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    ACCESS: tl.constexpr,
):  # fmt: skip
    """z = residual_scale * residual + row_scale * branch_scale * dropout(x + branch_bias), BLOCK columns of it."""
    cols = first + tl.arange(0, BLOCK)[None, :]
    z = load(x, row * x_stride, cols, inside, D, D % BLOCK == 0, C)
    if branch_bias is not None:
        z += load(branch_bias, row * 0, cols, None, D, D % BLOCK == 0, C)
    if seed is not None:
        z *= keep(tl.load(seed), row, first, threshold, keep_scale, C, ROWS, BLOCK, ACCESS)
    if branch_scale is not None:
        if SCALAR:
            z *= tl.load(branch_scale).to(C)
        else:
            z *= load(branch_scale, row * 0, cols, None, D, D % BLOCK == 0, C)
    if row_scale is not None:
        z *= row_scale
    if residual is not None:
        z += residual_scale * load(residual, row * residual_stride, cols, inside, D, D % BLOCK == 0, C)
    return z


@triton.jit
def deviations(z, shift, first, sum_1, sum_2, D: tl.constexpr, BLOCK: tl.constexpr):
    d = within(z - shift, first + tl.arange(0, BLOCK)[None, :], D, D % BLOCK == 0)
    return sum_1 + d, sum_2 + d * d


@triton.jit
def write(
    y, z, weight, bias, value, stats, row, inside, y_stride, z_stride, first, weight_offset,
    D: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr, NORMALISE: tl.constexpr,
):  # fmt: skip
    cols = first + tl.arange(0, BLOCK)[None, :]
    if z is not None:
        store(z, row * z_stride, cols, inside, value, D, D % BLOCK == 0)
    result = NORMALISE(value, stats)
    if weight is not None:
        result *= load(weight, row * 0, cols, None, D, D % BLOCK == 0, C) + weight_offset
    if bias is not None:
        result += load(bias, row * 0, cols, None, D, D % BLOCK == 0, C)
    store(y, row * y_stride, cols, inside, result, D, D % BLOCK == 0)


@triton.jit(do_not_specialize=["rows", "threshold"])
def forward_kernel(
    x, residual, weight, bias, branch_bias, branch_scale, row_scale, seed, y, z, stats,
    rows, x_stride, residual_stride, y_stride, z_stride, threshold,
    eps: tl.float64, residual_scale: tl.float64, keep_scale: tl.float64, weight_offset: tl.float64,
    STATISTICS: tl.constexpr, NORMALISE: tl.constexpr, SHIFTS: tl.constexpr, STATS: tl.constexpr,
    D: tl.constexpr, SCALAR: tl.constexpr, ALIGN: tl.constexpr, C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACCESS: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    TILES: tl.constexpr = (D + BLOCK - 1) // BLOCK
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    inside = row < rows if ROWS > 1 else None
    # In units that say to the compiler how far the rows are aligned; a step may be more than 2^31 elements.
    unit = tl.full([], ALIGN, tl.int64)
    x_stride, residual_stride, y_stride, z_stride = (
        x_stride * unit, residual_stride * unit, y_stride * unit, z_stride * unit,
    )  # fmt: skip
    zero = tl.zeros([ROWS, 1], tl.float64)
    residual_scale, keep_scale = (zero + residual_scale).to(C), (zero + keep_scale).to(C)
    eps, weight_offset = (zero + eps).to(C), (tl.zeros([1, 1], tl.float64) + weight_offset).to(C)
    per_row = None
    if row_scale is not None:
        per_row = tl.load(row_scale + row, mask=row < rows, other=0.0).to(C)
    count = tl.full([ROWS, 1], D, C)

    kept = ()
    if KEEP:
        for t in tl.static_range(TILES):
            kept = kept + (tile(
                x, residual, branch_bias, branch_scale, per_row, seed, row, inside, x_stride, residual_stride,
                t * BLOCK, threshold, residual_scale, keep_scale, D, SCALAR, C, ROWS, BLOCK, ACCESS,
            ),)  # fmt: skip

    # The shift: the row's mean, or of a row that is not kept the mean of its first tile.
    shift = tl.zeros([ROWS, 1], C)
    if SHIFTS:
        if KEEP:
            total = tl.zeros([ROWS, BLOCK], C)
            for t in tl.static_range(TILES):
                total += kept[t]
            shift = divide(tl.sum(total, 1, keep_dims=True), count)
        else:
            head = tile(
                x, residual, branch_bias, branch_scale, per_row, seed, row, inside, x_stride, residual_stride,
                0, threshold, residual_scale, keep_scale, D, SCALAR, C, ROWS, BLOCK, ACCESS,
            )  # fmt: skip
            shift = divide(tl.sum(head, 1, keep_dims=True), tl.full([ROWS, 1], min(D, BLOCK), C))

    sum_1, sum_2 = tl.zeros([ROWS, BLOCK], C), tl.zeros([ROWS, BLOCK], C)
    if KEEP:
        for t in tl.static_range(TILES):
            sum_1, sum_2 = deviations(kept[t], shift, t * BLOCK, sum_1, sum_2, D, BLOCK)
    else:
        # Again about a better shift where the first was off, which the difference of squares would not forgive.
        again = True
        for attempt in tl.static_range(2 if SHIFTS else 1):
            if attempt == 1:
                e = divide(tl.sum(sum_1, 1, keep_dims=True), count)
                v = divide(tl.sum(sum_2, 1, keep_dims=True), count) - e * e
                again = tl.sum((4 * e * e > v).to(tl.int32)) > 0
                if again:
                    shift += e
            if again:
                sum_1, sum_2 = tl.zeros([ROWS, BLOCK], C), tl.zeros([ROWS, BLOCK], C)
                for t in range(TILES):
                    value = tile(
                        x, residual, branch_bias, branch_scale, per_row, seed, row, inside, x_stride, residual_stride,
                        t * BLOCK, threshold, residual_scale, keep_scale, D, SCALAR, C, ROWS, BLOCK, ACCESS,
                    )  # fmt: skip
                    sum_1, sum_2 = deviations(value, shift, t * BLOCK, sum_1, sum_2, D, BLOCK)
    results = STATISTICS(shift, tl.sum(sum_1, 1, keep_dims=True), tl.sum(sum_2, 1, keep_dims=True), count, eps)
    if stats is not None:
        for i in tl.static_range(STATS):
            tl.store(stats + row * STATS + i, results[i], mask=row < rows)

    if KEEP:
        for t in tl.static_range(TILES):
            write(
                y, z, weight, bias, kept[t], results, row, inside, y_stride, z_stride, t * BLOCK, weight_offset,
                D, C, BLOCK, NORMALISE,
            )  # fmt: skip
    else:
        for t in range(TILES):
            first = (TILES - 1 - t) * BLOCK  # backwards: what was read last is what the cache surely has
            value = tile(
                x, residual, branch_bias, branch_scale, per_row, seed, row, inside, x_stride, residual_stride,
                first, threshold, residual_scale, keep_scale, D, SCALAR, C, ROWS, BLOCK, ACCESS,
            )  # fmt: skip
            write(
                y, z, weight, bias, value, results, row, inside, y_stride, z_stride, first, weight_offset,
                D, C, BLOCK, NORMALISE,
            )  # fmt: skip
