"""The backward: one text for every norm, option, dtype and width. With G = (weight_offset + weight) * dy:

    dz = norm.backward(G) + ds;  dresidual = residual_scale * dz;  dx = row_scale * branch_scale * keep * dz

A persistent grid: program p takes every p-th group of ROWS rows and keeps the column sums in registers, to be added up
by columns.py. A row too wide for that is split over several programs, which are given the row's two means by a pass of
their own (`means_kernel`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .forward import load, store
from .norms import divide
from .philox import keep


@triton.jit
def statistics(stats, row, rows, STATS: tl.constexpr):
    values = ()
    for i in tl.static_range(STATS):
        values = values + (tl.load(stats + row * STATS + i, mask=row < rows, other=0.0),)
    return values + (row,)  # unused: Triton would unwrap a tuple of one


@triton.jit
def gain(dy, weight, cols, weight_offset, D: tl.constexpr, WHOLE: tl.constexpr, C: tl.constexpr):
    g = dy.to(C)
    if weight is not None:
        g *= load(weight, 0, cols, None, D, WHOLE, C) + weight_offset
    return g


@triton.jit
def means_kernel(
    dy, z, stats, weight, means, rows, dy_stride, z_stride, weight_offset: tl.float64,
    NORMALISE: tl.constexpr, STATS: tl.constexpr, D: tl.constexpr, ALIGN: tl.constexpr,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean(G) and mean(G * xhat) of one row."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1, 1], tl.int64)
    weight_offset = (tl.zeros([1, 1], tl.float64) + weight_offset).to(C)
    dy_stride, z_stride = dy_stride * ALIGN, z_stride * ALIGN
    row_stats = statistics(stats, row, rows, STATS)
    sum_g, sum_gx = tl.zeros([1, BLOCK], C), tl.zeros([1, BLOCK], C)
    for first in range(0, D, BLOCK):
        cols = first + tl.arange(0, BLOCK)[None, :]
        xhat = NORMALISE(load(z, row * z_stride, cols, None, D, D % BLOCK == 0, C), row_stats)
        g = load(dy, row * dy_stride, cols, None, D, D % BLOCK == 0, C)
        g = gain(g, weight, cols, weight_offset, D, D % BLOCK == 0, C)
        sum_g += g
        sum_gx += g * xhat
    count = tl.full([1, 1], D, C)
    tl.store(means + 2 * row + tl.zeros([1, 1], tl.int64), divide(tl.sum(sum_g, 1, keep_dims=True), count))
    tl.store(means + 2 * row + 1, divide(tl.sum(sum_gx, 1, keep_dims=True), count))


@triton.jit
def backward_kernel(
    dy, ds, z, stats, x, weight, branch_bias, branch_scale, row_scale, seed, means,
    dx, dresidual, drow_scale, partials,
    rows, dy_stride, ds_stride, z_stride, x_stride, row_scale_stride, threshold,
    residual_scale: tl.float64, keep_scale: tl.float64, weight_offset: tl.float64,
    NORMALISE: tl.constexpr, BACKWARD: tl.constexpr, STATS: tl.constexpr,
    D: tl.constexpr, SCALAR: tl.constexpr, ALIGN: tl.constexpr, C: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BRANCH_BIAS: tl.constexpr, BRANCH_SCALE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    WHOLE: tl.constexpr = D % (BLOCK * TILES) == 0
    SUMS: tl.constexpr = WEIGHT + BIAS + BRANCH_BIAS + BRANCH_SCALE
    base = tl.program_id(1) * (BLOCK * TILES)
    cell = tl.zeros([ROWS, 1], tl.float64)
    residual_scale, keep_scale = (cell + residual_scale).to(C), (cell + keep_scale).to(C)
    weight_offset = (tl.zeros([1, 1], tl.float64) + weight_offset).to(C)
    dy_stride, ds_stride, z_stride, x_stride = (
        dy_stride * ALIGN, ds_stride * ALIGN, z_stride * ALIGN, x_stride * ALIGN,
    )  # fmt: skip
    count = tl.full([ROWS, 1], D, C)
    totals = ()
    for _ in tl.static_range(TILES * SUMS):
        totals = totals + (tl.zeros([ROWS, BLOCK], C),)

    for group in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=2):
        row = (group + tl.zeros([ROWS, 1], tl.int64)) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = row < rows if ROWS > 1 else None
        row_stats = statistics(stats, row, rows, STATS)
        zs, dys = (), ()
        if dy is not None:
            sum_g, sum_gx = tl.zeros([ROWS, BLOCK], C), tl.zeros([ROWS, BLOCK], C)
            for t in tl.static_range(TILES):
                cols = base + t * BLOCK + tl.arange(0, BLOCK)[None, :]
                z_t = load(z, row * z_stride, cols, inside, D, WHOLE, z.dtype.element_ty)
                dy_t = load(dy, row * dy_stride, cols, inside, D, WHOLE, dy.dtype.element_ty)
                zs, dys = zs + (z_t,), dys + (dy_t,)
                if means is None:
                    g = gain(dy_t, weight, cols, weight_offset, D, WHOLE, C)
                    sum_g += g
                    sum_gx += g * NORMALISE(z_t.to(C), row_stats)
            if means is None:
                mean_g = divide(tl.sum(sum_g, 1, keep_dims=True), count)
                mean_gx = divide(tl.sum(sum_gx, 1, keep_dims=True), count)
            else:
                mean_g = tl.load(means + 2 * row, mask=row < rows, other=0.0)
                mean_gx = tl.load(means + 2 * row + 1, mask=row < rows, other=0.0)
        per_row = tl.full([ROWS, 1], 1.0, C)
        if row_scale is not None:
            per_row = tl.load(row_scale + row * row_scale_stride, mask=row < rows, other=0.0).to(C)
        by_row = tl.zeros([ROWS, BLOCK], C)
        added = ()
        for t in tl.static_range(TILES):
            first = base + t * BLOCK
            cols = first + tl.arange(0, BLOCK)[None, :]
            terms = ()
            dz = tl.zeros([ROWS, BLOCK], C)
            if dy is not None:
                dy_t = dys[t].to(C)
                xhat = NORMALISE(zs[t].to(C), row_stats)
                dz += BACKWARD(gain(dy_t, weight, cols, weight_offset, D, WHOLE, C), xhat, row_stats, mean_g, mean_gx)
                if WEIGHT:
                    terms = terms + (dy_t * xhat,)
                if BIAS:
                    terms = terms + (dy_t,)
            if ds is not None:
                dz += load(ds, row * ds_stride, cols, inside, D, WHOLE, C)
            if dresidual is not None:
                store(dresidual, row * D, cols, inside, residual_scale * dz, D, WHOLE)
            kept = tl.full([ROWS, BLOCK], 1.0, C)
            if seed is not None:
                kept = keep(tl.load(seed), row, first, threshold, keep_scale, C, ROWS, BLOCK)
            scale = tl.full([1, 1], 1.0, C)
            if branch_scale is not None:
                scale = tl.load(branch_scale).to(C) if SCALAR else load(branch_scale, 0, cols, None, D, WHOLE, C)
            branch = dz * per_row * scale * kept
            if dx is not None:
                store(dx, row * D, cols, inside, branch, D, WHOLE)
            if BRANCH_BIAS:
                terms = terms + (branch,)
            if x is not None:
                u = load(x, row * x_stride, cols, inside, D, WHOLE, C)
                if branch_bias is not None:
                    u += load(branch_bias, 0, cols, None, D, WHOLE, C)
                u = u * kept * dz
                by_row += u * scale
                if BRANCH_SCALE:
                    terms = terms + (u * per_row,)
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
            store(partials, place, cols, None, tl.sum(totals[t * SUMS + k], 0, keep_dims=True), D, WHOLE)
