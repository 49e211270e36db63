"""The streaming floor: the bytes that a case must move, moved as fast as this machine can.

The same reads and writes into existing tensors, with no arithmetic to speak of, by the best of what is at hand:
torch's own vector loops and, where the extension is there, native loops with regular and with non-temporal stores.
No Add & Norm kernel, however it is written, can be quicker than the best of these by more than noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..backends.native import EXTENSION
from .cases import Case
from .results import FLOOR

Move = Callable[[list[Tensor], list[Tensor]], object]


def candidates(case: Case) -> dict[str, Callable[[], object]]:
    """Every way there is to move the bytes of a case; the floor is the quickest."""
    phases = buffers(case)
    return {f"{FLOOR}:{name}": over(phases, move) for name, move in moves().items()}


def over(phases: list[tuple[list[Tensor], list[Tensor]]], move: Move) -> Callable[[], object]:
    def run() -> None:
        for reads, writes in phases:
            move(reads, writes)

    return run


def buffers(case: Case) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Flat float32 tensors of the activations' size: what the forward writes for the backward, the backward reads.

    Filled, since pages that were never written are all one and the same page of zeros.
    """
    words = -(-case.rows * case.d * case.torch_dtype.itemsize // 4)

    def fresh(count: int) -> list[Tensor]:
        return [torch.ones(words, device=case.device) for _ in range(count)]

    phases: list[tuple[list[Tensor], list[Tensor]]] = []
    for reads, writes in case.phases:
        kept = phases[-1][1][-1:] if phases else []  # z
        phases.append((kept + fresh(reads - len(kept)), fresh(writes)))
    return phases


def device_copy(case: Case) -> Callable[[], object]:
    """A copy on the device that moves as many bytes as the case, half of them read."""
    words = -(-case.nbytes // 8)
    source = torch.ones(words, device=case.device)
    return partial(torch.empty_like(source).copy_, source)


def same_shape_copy(case: Case) -> Callable[[], object]:
    """A copy of one activation: what a small case can not be quicker than by much."""
    source = torch.ones(case.rows, case.d, dtype=case.torch_dtype, device=case.device)
    return partial(torch.empty_like(source).copy_, source)


def moves() -> dict[str, Move]:
    ways: dict[str, Move] = {"torch": by_torch}
    if EXTENSION is not None:
        native = EXTENSION.stream_floor
        ways["regular"] = lambda reads, writes: native(reads, writes, False)
        ways["non-temporal"] = lambda reads, writes: native(reads, writes, True)
    return ways


def by_torch(reads: list[Tensor], writes: list[Tensor]) -> None:
    """Two reads and a write at a time; a third read or a second write adds nothing to the bytes but itself."""
    a, b, *more_reads = reads
    first, *more_writes = writes
    torch.add(a, b, out=first)
    for tensor in more_reads:
        tensor.sum()
    for tensor in more_writes:
        tensor.fill_(1.0)
