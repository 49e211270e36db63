"""The published dropout mask, by the same bits as `addnorm.rng`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep(seed, row, first, threshold, keep_scale, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Dropout's multiplier of the columns `first` to `first` + BLOCK, ``[ROWS, BLOCK]``: 0 or `keep_scale`.

    One Philox call serves eight neighbours: its four words, joined in column order, low half first.
    """
    block = (first // 8 + tl.arange(0, BLOCK // 8))[None, :]
    block = tl.broadcast_to(block, [ROWS, BLOCK // 8]).to(tl.uint32)
    low = tl.broadcast_to((row & 0xFFFFFFFF).to(tl.uint32), [ROWS, BLOCK // 8])
    high = tl.broadcast_to(((row >> 32) & 0xFFFFFFFF).to(tl.uint32), [ROWS, BLOCK // 8])
    w0, w1, w2, w3 = tl.philox(seed, low, high, block, block * 0)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, BLOCK // 2])
    lanes = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [ROWS, BLOCK])
    return tl.where(lanes >= threshold.to(tl.uint32), keep_scale, tl.zeros([1, 1], C))
