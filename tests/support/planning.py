"""Plain torch by plans, as a backend whose host time matters has them.

A plan reads the memory at the addresses that it is given as the planned call had it, like a kernel: one that is taken
for another kind of call gives other numbers, or nothing that could be numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from addnorm import again
from addnorm.backends import BACKENDS, Plan
from addnorm.backends.eager import Eager
from addnorm.call import CALL_TENSORS, GRADIENT_TENSORS, OPERANDS, Call, Gradient


class Planning(Eager):
    name = "planning"
    in_python = True

    def __init__(self) -> None:
        self.made = self.taken = 0

    def forward_plan(self, call: Call, *, keep_stream: bool, keep_stats: bool) -> Plan | None:
        self.made += 1

        def carry_out(addresses: Sequence[int | None]) -> tuple[Any, ...]:
            self.taken += 1
            found = replace(call, **there(call, CALL_TENSORS, addresses))
            return self.forward(found, keep_stream=keep_stream, keep_stats=keep_stats)

        return carry_out

    def backward_plan(self, call: Gradient) -> Plan | None:
        self.made += 1

        def carry_out(addresses: Sequence[int | None]) -> tuple[Any, ...]:
            self.taken += 1
            grads = self.backward(replace(call, **there(call, GRADIENT_TENSORS, addresses)))
            return tuple([grads[name] for name in OPERANDS])

        return carry_out


def there(call: Call | Gradient, names: Sequence[str], addresses: Sequence[int | None]) -> dict[str, Tensor | None]:
    """What lies at the addresses, as the call has tensors."""
    return {name: read(getattr(call, name), address) for name, address in zip(names, addresses, strict=True)}


def read(like: Tensor | None, address: int | None) -> Tensor | None:
    assert (like is None) == (address is None)
    if like is None or address is None:
        return None
    memory = (ctypes.c_char * (like.numel() * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape).clone()


@contextmanager
def planning() -> Iterator[Planning]:
    """The backend by name, with no plans yet."""
    backend = Planning()
    with mock.patch.dict(BACKENDS, {backend.name: backend}), mock.patch.object(again, "PLANS", {}):
        yield backend
