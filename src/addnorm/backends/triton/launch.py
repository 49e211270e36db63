"""How a width is cut up: a literal table, for no tuning happens at run time.

By the bytes of the widest activation, and by width: a row holds up to its `width`. A row of a table depends on
nothing else, so that a token's bits do not depend on how many others there are.
"""

from __future__ import annotations

from dataclasses import dataclass

ANY = 1 << 62
MANY = 4096
ALIGN = 8  # elements
REGISTERS = 65536  # of a multiprocessor


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
    """The same; `programs` a multiprocessor, fewer where options take so many registers that these do not fit. `room`:
    the column sums that fit the registers, in tiles: a row that needs more is split over several programs. `held`: of
    how many groups of rows the inputs stay in registers: 2 is this one and the next, 1 this one, and with 0 a row is
    read twice."""

    width: int
    rows: int
    block: int
    warps: int
    room: int
    programs: int
    held: int

    def tiles(self, width: int, sums: int, extras: int) -> int:
        """Tiles of a program, of a row of some width. An extra takes as much room as a column sum: a mask, the sum for
        the branch's bias once more, x twice; one sum alone takes as much as two."""
        room = self.room // 2 if width > self.width and width % ALIGN else self.room  # the rest is for addresses
        fit = max(1, room // max(2, sums + extras))
        return min(fit, -(-min(width, self.width) // self.block))

    def registers(self, extras: int) -> int | None:
        """That a thread may have, or None for what ptxas chooses. It rather spills a few bytes than let go of one more
        program: with extras, and where sixteen warps have none, it is told to take what there is. Sixteen with extras
        need all anyway, and spilled when told."""
        if bool(extras) == (self.warps == 16):
            return None
        return min(255, REGISTERS // (32 * self.warps))

    def means_block(self, itemsize: int) -> int:
        """The columns that the pass for the means of a split row takes at once: 16 bytes a thread at least."""
        return max(2 * self.block, 16 // itemsize * 32 * self.warps)

    def holds(self, extras: int) -> int:
        """`held`, but nothing where the registers of sixteen warps are wanted for extras."""
        return 0 if extras and self.warps == 16 else self.held


def resident(registers: int, warps: int) -> int:
    """How many programs the registers of a multiprocessor hold at once; a thread is given them in eights."""
    return REGISTERS // (32 * warps * -(-registers // 8) * 8)


HALF_FORWARD = (
    Forward(64, 32, 64, 4), Forward(128, 16, 128, 4), Forward(256, 8, 256, 4), Forward(1024, 4, 256, 4),
    Forward(2048, 1, 512, 2), Forward(7168, 1, 1024, 4), Forward(12288, 1, 2048, 8),
    Forward(ANY, 1, 4096, 16, keep=False),
)  # fmt: skip
SINGLE_FORWARD = (
    Forward(64, 32, 64, 4), Forward(128, 16, 128, 4), Forward(256, 8, 256, 4), Forward(1024, 4, 256, 4),
    Forward(2048, 1, 512, 2), Forward(7168, 1, 1024, 4), Forward(12288, 1, 2048, 8),
    Forward(ANY, 1, 2048, 8, keep=False),
)  # fmt: skip
DOUBLE_FORWARD = (
    Forward(64, 16, 64, 4), Forward(128, 8, 128, 4), Forward(256, 4, 256, 4), Forward(1024, 2, 256, 4),
    Forward(4096, 1, 512, 4), Forward(8192, 1, 1024, 8), Forward(ANY, 1, 2048, 8, keep=False),
)  # fmt: skip
FORWARD: dict[int, tuple[Forward, ...]] = {2: HALF_FORWARD, 4: SINGLE_FORWARD, 8: DOUBLE_FORWARD}

HALF_BACKWARD = (
    Backward(64, 32, 64, 4, 8, 4, 1), Backward(128, 16, 128, 4, 8, 4, 1), Backward(256, 8, 256, 4, 8, 4, 1),
    Backward(768, 4, 256, 4, 21, 3, 1), Backward(1024, 1, 512, 2, 16, 8, 1), Backward(2048, 1, 1024, 4, 16, 4, 1),
    Backward(4096, 1, 2048, 8, 16, 2, 1), Backward(6144, 1, 2048, 8, 9, 2, 0), Backward(8192, 1, 4096, 16, 8, 1, 1),
    Backward(16384, 1, 4096, 16, 8, 1, 0), Backward(ANY, 1, 4096, 8, 2, 2, 0),
)  # fmt: skip
SINGLE_BACKWARD = (
    Backward(64, 16, 64, 4, 8, 6, 1), Backward(128, 8, 128, 4, 8, 6, 1), Backward(256, 4, 256, 4, 8, 5, 1),
    Backward(1024, 1, 256, 2, 32, 8, 1), Backward(2048, 1, 512, 4, 32, 4, 1), Backward(4096, 1, 2048, 8, 16, 2, 1),
    Backward(6144, 1, 2048, 16, 9, 1, 1), Backward(12288, 1, 2048, 16, 12, 1, 0), Backward(ANY, 1, 2048, 8, 4, 2, 0),
)  # fmt: skip
DOUBLE_BACKWARD = (
    Backward(64, 4, 64, 4, 8, 4, 1), Backward(128, 2, 128, 4, 8, 4, 1), Backward(256, 2, 256, 4, 8, 4, 1),
    Backward(1024, 1, 256, 4, 20, 2, 1), Backward(4096, 1, 1024, 8, 12, 1, 0), Backward(ANY, 1, 1024, 8, 6, 1, 0),
)  # fmt: skip
BACKWARD: dict[int, tuple[Backward, ...]] = {2: HALF_BACKWARD, 4: SINGLE_BACKWARD, 8: DOUBLE_BACKWARD}

# Rows that are read twice and are no multiple of `ALIGN` long: with an address and a mask for each element, the threads
# of sixteen warps have too few registers.
ODD_FORWARD: dict[int, Forward] = {
    2: Forward(ANY, 1, 2048, 8, keep=False), 4: Forward(ANY, 1, 1024, 8, keep=False),
    8: Forward(ANY, 1, 2048, 8, keep=False),
}  # fmt: skip

# A row that is split has a program for each part in the grid's second dimension, of which CUDA allows so many; where
# options leave room for one tile, a part is a block. Far below are the 2^31 columns that the kernels could number.
PARTS = 65535
MOST_COLUMNS = PARTS * min(row.block for rows in BACKWARD.values() for row in rows if row.width >= MANY)


def forward_for(width: int, itemsize: int) -> Forward:
    launch = next(launch for launch in FORWARD[itemsize] if width <= launch.width)
    return launch if launch.keep or width % ALIGN == 0 else ODD_FORWARD[itemsize]


def backward_for(width: int, itemsize: int, sums: int) -> Backward:
    """More than two column sums are never kept for more than `MANY` columns: a wider row is split as one of those."""
    width = width if sums <= 2 else min(width, MANY)
    return next(launch for launch in BACKWARD[itemsize] if width <= launch.width)
