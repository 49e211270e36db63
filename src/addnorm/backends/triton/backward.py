"""The backward: one text for every norm, option, dtype and width. With G = (weight_offset + weight) * dy:

    dz = norm.backward(G) + ds;  dresidual = residual_scale * dz;  dx = row_scale * branch_scale * keep * dz

A persistent grid: program p takes every p-th group of ROWS rows and keeps the column sums in registers, to be added up
by columns.py. Registers also hold z, dy and ds of two groups, this one and the next, which is on its way meanwhile
(HELD = 2), of this one, or of none (0): where the sums leave no room, the row is read a second time, from the cache. A
row too wide for the sums is split over several programs, which are given its two means by a pass of their own
(`means_kernel`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import load, store, within
from .norms import both_sums, divide
from .philox import keep


@triton.jit
def statistics(stats, row, rows, STATS: tl.constexpr):
    values = ()
    for i in tl.static_range(STATS):
        values = values + (tl.load(stats + row * STATS + i, mask=row < rows, other=0.0),)
    return values + (row,)  # unused: Triton would unwrap a tuple of one


@triton.jit
def gain(dy, weight, weight_offset, C: tl.constexpr):
    return dy * (weight.to(C) + weight_offset)


@triton.jit
def tiles(
    pointer, offset, inside, base, D: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr
):
    """A program's columns of some rows, as they are stored."""
    values = (offset,)  # unused: Triton would unwrap a tuple of one
    for t in tl.static_range(TILES):
        cols = base + t * BLOCK + tl.arange(0, BLOCK)[None, :]
        values = values + (load(pointer, offset, cols, inside, D, WHOLE, pointer.dtype.element_ty),)
    return values


@triton.jit
def read(
    z, dy, ds, stats, row, rows, inside, z_stride, dy_stride, ds_stride, base,
    STATS: tl.constexpr, D: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """What the gradient of some rows is made from: z, dy and ds in tiles, and the statistics."""
    zs, dys, dss = (row,), (row,), (row,)
    if dy is not None:
        zs = tiles(z, row * z_stride, inside, base, D, WHOLE, BLOCK, TILES)
        dys = tiles(dy, row * dy_stride, inside, base, D, WHOLE, BLOCK, TILES)
    if ds is not None:
        dss = tiles(ds, row * ds_stride, inside, base, D, WHOLE, BLOCK, TILES)
    return zs, dys, dss, statistics(stats, row, rows, STATS)


@triton.jit
def tile_of(
    held, t: tl.constexpr, pointer, offset, cols, inside, D: tl.constexpr, WHOLE: tl.constexpr, HELD: tl.constexpr
):
    """Tile t of what is held, or read again."""
    return held[t + 1] if HELD > 0 else load(pointer, offset, cols, inside, D, WHOLE, pointer.dtype.element_ty)


@triton.jit
def counted(value, inside):
    """Zero in rows that are not there: times a parameter that is infinite they are NaN, which their column would be."""
    return value if inside is None else tl.where(inside, value, 0.0)


@triton.jit
def means_of(
    dy, z, weight, row_stats, dy_at, z_at, row, weight_offset,
    NORMALISE: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean(G) and mean(G * xhat) of one row, read for this alone."""
    sum_g, sum_gx = tl.zeros([1, BLOCK], C), tl.zeros([1, BLOCK], C)
    for first in range(0, D, BLOCK):
        cols = first + tl.arange(0, BLOCK)[None, :]
        xhat = NORMALISE(load(z, z_at, cols, None, D, D % BLOCK == 0, C), row_stats)
        g = load(dy, dy_at, cols, None, D, D % BLOCK == 0, C)
        if weight is not None:
            g = gain(g, load(weight, row * 0, cols, None, D, D % BLOCK == 0, C), weight_offset, C)
        sum_g += g
        sum_gx += within(g * xhat, cols, D, D % BLOCK == 0)
    sum_g, sum_gx = both_sums(sum_g, sum_gx)
    count = tl.full([1, 1], D, C)
    return divide(sum_g, count), divide(sum_gx, count)


@triton.jit(do_not_specialize=["rows"])
def means_kernel(
    dy, z, stats, weight, means, rows, dy_stride, z_stride, weight_offset: tl.float64,
    NORMALISE: tl.constexpr, STATS: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The means of one row a program."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1, 1], tl.int64)
    weight_offset = (tl.zeros([1, 1], tl.float64) + weight_offset).to(C)
    mean_g, mean_gx = means_of(
        dy, z, weight, statistics(stats, row, rows, STATS), row * dy_stride * ALIGN, row * z_stride * ALIGN, row,
        weight_offset, NORMALISE, D, C, BLOCK,
    )  # fmt: skip
    tl.store(means + 2 * row, mean_g)
    tl.store(means + 2 * row + 1, mean_gx)


@triton.jit(do_not_specialize=["rows", "threshold"])
def backward_kernel(
    dy, ds, z, stats, x, weight, branch_bias, branch_scale, row_scale, seed, means,
    dx, dresidual, drow_scale, partials,
    rows, dy_stride, ds_stride, z_stride, x_stride, threshold,
    residual_scale: tl.float64, keep_scale: tl.float64, weight_offset: tl.float64,
    NORMALISE: tl.constexpr, BACKWARD: tl.constexpr, STATS: tl.constexpr,
    D: tl.constexpr, SCALAR: tl.constexpr, ALIGN: tl.constexpr, C: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BRANCH_BIAS: tl.constexpr, BRANCH_SCALE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACCESS: tl.constexpr, TILES: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    WHOLE: tl.constexpr = D % (BLOCK * TILES) == 0
    SUMS: tl.constexpr = WEIGHT + BIAS + BRANCH_BIAS + BRANCH_SCALE
    base = tl.program_id(1) * (BLOCK * TILES)
    cell = tl.zeros([ROWS, 1], tl.float64)
    residual_scale, keep_scale = (cell + residual_scale).to(C), (cell + keep_scale).to(C)
    weight_offset = (cell + weight_offset).to(C)
    unit = tl.full([], ALIGN, tl.int64)  # a step may be more than 2^31 elements
    dy_stride, ds_stride, z_stride, x_stride = dy_stride * unit, ds_stride * unit, z_stride * unit, x_stride * unit
    count = tl.full([ROWS, 1], D, C)
    totals = ()
    for _ in tl.static_range(TILES * SUMS):
        totals = totals + (tl.zeros([ROWS, BLOCK], C),)
    lane = tl.zeros([ROWS, 1], tl.int64) + tl.arange(0, ROWS)[:, None]
    weights = (lane,)
    if HELD > 0 and weight is not None:
        weights = tiles(weight, lane * 0, None, base, D, WHOLE, BLOCK, TILES)
    groups = (rows - 1) // ROWS + 1  # where rows + ROWS might not fit 32 bits
    if HELD == 2:
        start = tl.program_id(0) * ROWS + lane
        ahead = read(
            z, dy, ds, stats, start, rows, start < rows if ROWS > 1 else None, z_stride, dy_stride, ds_stride, base,
            STATS, D, WHOLE, BLOCK, TILES,
        )  # fmt: skip

    for group in range(tl.program_id(0), groups, tl.num_programs(0)):
        row = (lane * 0 + group) * ROWS + lane
        inside = row < rows if ROWS > 1 else None
        if HELD == 2:
            after = tl.minimum(lane * 0 + group + tl.num_programs(0), groups - 1) * ROWS + lane
            there = after < rows if ROWS > 1 else None
            zs, dys, dss, row_stats = ahead
            ahead = read(
                z, dy, ds, stats, after, rows, there, z_stride, dy_stride, ds_stride, base,
                STATS, D, WHOLE, BLOCK, TILES,
            )  # fmt: skip
        elif HELD == 1:
            zs, dys, dss, row_stats = read(
                z, dy, ds, stats, row, rows, inside, z_stride, dy_stride, ds_stride, base,
                STATS, D, WHOLE, BLOCK, TILES,
            )  # fmt: skip
        else:
            zs, dys, dss, row_stats = (lane,), (lane,), (lane,), statistics(stats, row, rows, STATS)
        z_at, dy_at, ds_at = row * z_stride, row * dy_stride, row * ds_stride
        if means is not None:
            mean_g = tl.load(means + 2 * row, mask=row < rows, other=0.0)
            mean_gx = tl.load(means + 2 * row + 1, mask=row < rows, other=0.0)
        elif dy is not None and HELD == 0:
            mean_g, mean_gx = means_of(
                dy, z, weight, row_stats, dy_at, z_at, row, weight_offset, NORMALISE, D, C, BLOCK
            )
        elif dy is not None:
            sum_g, sum_gx = tl.zeros([ROWS, BLOCK], C), tl.zeros([ROWS, BLOCK], C)
            for t in tl.static_range(TILES):
                cols = base + t * BLOCK + tl.arange(0, BLOCK)[None, :]
                z_t = tile_of(zs, t, z, z_at, cols, inside, D, WHOLE, HELD)
                g = tile_of(dys, t, dy, dy_at, cols, inside, D, WHOLE, HELD).to(C)
                if weight is not None:
                    g = gain(g, tile_of(weights, t, weight, lane * 0, cols, None, D, WHOLE, HELD), weight_offset, C)
                sum_g += g
                sum_gx += within(g * NORMALISE(z_t.to(C), row_stats), cols, D, WHOLE)
            mean_g, mean_gx = both_sums(sum_g, sum_gx)
            mean_g, mean_gx = divide(mean_g, count), divide(mean_gx, count)
        per_row = tl.full([ROWS, 1], 1.0, C)
        if row_scale is not None:
            per_row = tl.load(row_scale + row, mask=row < rows, other=0.0).to(C)
        by_row = tl.zeros([ROWS, BLOCK], C)
        added = ()
        for t in tl.static_range(TILES):
            first = base + t * BLOCK
            cols = first + tl.arange(0, BLOCK)[None, :]
            terms = ()
            dz = tl.zeros([ROWS, BLOCK], C)
            if dy is not None:
                xhat = NORMALISE(tile_of(zs, t, z, z_at, cols, inside, D, WHOLE, HELD).to(C), row_stats)
                dy_t = tile_of(dys, t, dy, dy_at, cols, inside, D, WHOLE, HELD).to(C)
                g = dy_t
                if weight is not None:
                    g = gain(g, tile_of(weights, t, weight, lane * 0, cols, None, D, WHOLE, HELD), weight_offset, C)
                dz += BACKWARD(g, xhat, row_stats, mean_g, mean_gx)
                if WEIGHT:
                    terms = terms + (dy_t * xhat,)
                if BIAS:
                    terms = terms + (dy_t,)
            if ds is not None:
                dz += tile_of(dss, t, ds, ds_at, cols, inside, D, WHOLE, HELD).to(C)
            if dresidual is not None:
                store(dresidual, row * D, cols, inside, residual_scale * dz, D, WHOLE)
            kept = tl.full([1, 1], 1.0, C)
            if seed is not None:
                kept = keep(tl.load(seed), row, first, threshold, keep_scale, C, ROWS, BLOCK, ACCESS)
            scale = tl.full([1, 1], 1.0, C)
            if branch_scale is not None:
                scale = tl.load(branch_scale).to(C) if SCALAR else load(branch_scale, lane * 0, cols, None, D, WHOLE, C)
            branch = dz * per_row * scale * kept
            if dx is not None:
                store(dx, row * D, cols, inside, branch, D, WHOLE)
            if BRANCH_BIAS:
                terms = terms + (counted(branch, inside),)
            if x is not None:
                u = load(x, row * x_stride, cols, inside, D, WHOLE, C)
                if branch_bias is not None:
                    u += load(branch_bias, lane * 0, cols, None, D, WHOLE, C)
                u = u * kept * dz
                by_row += within(u * scale, cols, D, WHOLE)
                if BRANCH_SCALE:
                    terms = terms + (counted(u * per_row, inside),)
            for k in tl.static_range(SUMS):
                added = added + (totals[t * SUMS + k] + terms[k],)
        totals = added
        if drow_scale is not None:
            place = drow_scale + tl.program_id(1).to(tl.int64) * rows + row
            tl.store(place, tl.sum(by_row, 1, keep_dims=True).to(drow_scale.dtype.element_ty), mask=row < rows)

    for k in tl.static_range(SUMS):
        place = (k * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * D
        for t in tl.static_range(TILES):
            cols = base + t * BLOCK + tl.arange(0, BLOCK)[None, :]
            total = totals[t * SUMS + k] if ROWS == 1 else tl.sum(totals[t * SUMS + k], 0, keep_dims=True)
            store(partials, place, cols, None, total, D, WHOLE)
