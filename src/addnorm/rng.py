"""The dropout mask as a pure function of (seed, row, column).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), with
key = seed and counter = (row, column // 8), both as 64-bit numbers, low word first. The four output
words are eight 16-bit lanes in column order, low half first. Every backend draws these very bits, so a
mask is never stored: the backward draws it again.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 8  # columns served by one Philox call
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW_32 = 0xFFFFFFFF


def mask(seed: int | Tensor, rows: int, columns: int, threshold: int) -> Tensor:
    """Which elements dropout keeps: a bool tensor ``(rows, columns)``, one for each seed of a tensor of them.

    An element is dropped iff its lane is below `threshold` = min(round(65536 p), 65535).

    >>> mask(seed=0, rows=2, columns=4, threshold=32768)
    tensor([[ True, False,  True,  True],
            [ True,  True, False, False]])
    """
    return lanes(seed, rows, columns) >= threshold


def lanes(seed: int | Tensor, rows: int | Tensor, columns: int) -> Tensor:
    """The 16-bit lanes, uniform on [0, 65536): an int64 tensor ``(rows, columns)``, one for each seed. `rows` are so
    many, or those with these indices."""
    seed = torch.as_tensor(seed, dtype=torch.int64)[..., None, None]
    row = (rows if isinstance(rows, Tensor) else torch.arange(rows, device=seed.device)).unsqueeze(1)
    block = torch.arange(-(-columns // LANES), device=seed.device).unsqueeze(0)
    words = philox(low(seed), high(seed), low(row), high(row), low(block), high(block))
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten(-2)[..., :columns]


def philox(key0: Tensor, key1: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Philox4x32-10 on 32-bit words held in int64 tensors, which broadcast."""
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    for _ in range(ROUNDS):
        high0, low0 = multiply(MULTIPLIERS[0], c0)
        high1, low1 = multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + WEYL[0]) & LOW_32, (key1 + WEYL[1]) & LOW_32
    return c0, c1, c2, c3


def multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the 64-bit product, by halves: the whole product overflows int64."""
    bottom, top = a * (b & 0xFFFF), a * (b >> 16)
    return (top + (bottom >> 16)) >> 16, (bottom + (top << 16)) & LOW_32


def low(word: Tensor) -> Tensor:
    return word & LOW_32


def high(word: Tensor) -> Tensor:
    return (word >> 32) & LOW_32
