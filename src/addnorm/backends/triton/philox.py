"""The published dropout mask, by the same bits as `addnorm.rng`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep(
    seed, row, first, threshold, keep_scale,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, ACCESS: tl.constexpr,
):  # fmt: skip
    """Dropout's multiplier of the columns `first` to `first` + BLOCK, ``[ROWS, BLOCK]``: 0 or `keep_scale`.

    One Philox call serves eight neighbours: its four words, joined in column order, low half first. A thread has the
    ACCESS neighbours that it moves at once; where those are fewer than eight, it makes the call for them alone: cheaper
    than to pass words from thread to thread through shared memory.
    """
    SHARE: tl.constexpr = 8 // ACCESS
    group = tl.broadcast_to((first // ACCESS + tl.arange(0, BLOCK // ACCESS))[None, :], [ROWS, BLOCK // ACCESS])
    block = (group // SHARE).to(tl.uint32)
    low = tl.broadcast_to((row & 0xFFFFFFFF).to(tl.uint32), block.shape)
    high = tl.broadcast_to(((row >> 32) & 0xFFFFFFFF).to(tl.uint32), block.shape)
    w0, w1, w2, w3 = tl.philox(seed, low, high, block, block * 0)
    part = group % SHARE
    if ACCESS == 8:
        words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS, BLOCK // 2])
    elif ACCESS == 4:
        words = tl.reshape(tl.join(tl.where(part == 0, w0, w2), tl.where(part == 0, w1, w3)), [ROWS, BLOCK // 2])
    else:
        words = tl.where(part < 2, tl.where(part == 0, w0, w1), tl.where(part == 2, w2, w3))
    lanes = tl.reshape(tl.join(words & 0xFFFF, words >> 16), [ROWS, BLOCK])
    return tl.where(lanes >= threshold.to(tl.uint32), keep_scale, tl.zeros([1, 1], C))
