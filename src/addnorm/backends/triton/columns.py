"""The last step of every gradient that sums over rows: the programs' partial sums, added in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

# Of up to a thousand partials so many are added side by side, as a program waits for memory once for them; the columns
# are whole lines of the cache.
TOGETHER = tl.constexpr(128)
WIDTH = tl.constexpr(32)


@triton.jit(do_not_specialize=["programs"])
def columns_kernel(partials, results, programs, width):
    """``results[k][column]`` = the sum over p of ``partials[k, p, column]``, k and the columns by program."""
    cols = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)[None, :]
    part = tl.arange(0, TOGETHER)[:, None]
    for k in tl.static_range(len(results)):
        if tl.program_id(1) == k:
            total = tl.zeros([TOGETHER, WIDTH], partials.dtype.element_ty)
            for first in range(0, programs, TOGETHER):
                place = (k * programs + first + part).to(tl.int64) * width + cols
                total += tl.load(partials + place, mask=(first + part < programs) & (cols < width), other=0.0)
            total = tl.sum(total, 0, keep_dims=True)
            tl.store(results[k] + cols, total.to(results[k].dtype.element_ty), mask=cols < width)
