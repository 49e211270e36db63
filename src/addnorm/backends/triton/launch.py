"""How a width is cut up: a literal table, for no tuning happens at run time.

By the bytes of the widest activation, and by width: a row holds up to its `width`. A row of a table depends on
nothing else, so that a token's bits do not depend on how many others there are.
"""

from __future__ import annotations

from dataclasses import dataclass

ANY = 1 << 62


@dataclass(frozen=True)
class Forward:
    """`rows` a program, in tiles of `block` columns, by `warps`; `keep`: z stays in registers."""

    width: int
    rows: int
    block: int
    warps: int
    keep: bool = True


@dataclass(frozen=True)
class Backward:
    """The same; `programs` a multiprocessor, each for `tiles` tiles at most: a wider row is split over several."""

    width: int
    rows: int
    block: int
    warps: int
    tiles: int
    programs: int


HALF_FORWARD = (
    Forward(64, 32, 64, 4), Forward(128, 16, 128, 4), Forward(256, 8, 256, 4), Forward(1024, 4, 256, 4),
    Forward(2048, 1, 512, 2), Forward(8192, 1, 1024, 4), Forward(16384, 1, 2048, 8),
    Forward(ANY, 1, 4096, 8, keep=False),
)  # fmt: skip
DOUBLE_FORWARD = (
    Forward(64, 16, 64, 4), Forward(128, 8, 128, 4), Forward(256, 4, 256, 4), Forward(1024, 2, 256, 4),
    Forward(4096, 1, 512, 4), Forward(8192, 1, 1024, 8), Forward(ANY, 1, 2048, 8, keep=False),
)  # fmt: skip
FORWARD: dict[int, tuple[Forward, ...]] = {2: HALF_FORWARD, 4: HALF_FORWARD, 8: DOUBLE_FORWARD}

HALF_BACKWARD = (
    Backward(64, 16, 64, 4, 1, 4), Backward(128, 8, 128, 4, 1, 4), Backward(256, 4, 256, 4, 1, 4),
    Backward(768, 4, 256, 4, 3, 2), Backward(1024, 1, 1024, 4, 1, 4), Backward(2048, 1, 512, 2, 4, 6),
    Backward(4096, 1, 1024, 4, 4, 3),
    Backward(8192, 1, 2048, 8, 4, 1), Backward(ANY, 1, 2048, 8, 4, 1),
)  # fmt: skip
DOUBLE_BACKWARD = (
    Backward(64, 8, 64, 4, 1, 4), Backward(128, 4, 128, 4, 1, 4), Backward(256, 2, 256, 4, 1, 4),
    Backward(1024, 1, 256, 4, 4, 2), Backward(4096, 1, 1024, 8, 4, 1), Backward(ANY, 1, 1024, 8, 4, 1),
)  # fmt: skip
SINGLE_BACKWARD = (
    Backward(64, 16, 64, 4, 1, 4), Backward(128, 4, 128, 4, 1, 4), Backward(256, 4, 256, 4, 1, 4),
    Backward(768, 4, 256, 4, 3, 2), Backward(1024, 1, 1024, 4, 1, 4), Backward(2048, 1, 512, 2, 4, 6),
    Backward(4096, 1, 1024, 4, 4, 3), Backward(8192, 1, 2048, 8, 4, 1), Backward(ANY, 1, 2048, 8, 4, 1),
)  # fmt: skip
BACKWARD: dict[int, tuple[Backward, ...]] = {2: HALF_BACKWARD, 4: SINGLE_BACKWARD, 8: DOUBLE_BACKWARD}


def forward_for(width: int, itemsize: int) -> Forward:
    return next(launch for launch in FORWARD[itemsize] if width <= launch.width)


def backward_for(width: int, itemsize: int) -> Backward:
    return next(launch for launch in BACKWARD[itemsize] if width <= launch.width)
