"""Backends that are wrong, each in one way, each with the check that must reject it.

A mutant is the eager backend over the reference with one function replaced; `test_mutants.py` sees every check
of `acceptance` fail at least once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor

from addnorm.backends.eager import Eager
from addnorm.call import Call, Gradient

Grads = dict[str, Tensor | None]
Results = tuple[Tensor, Tensor | None, Tensor | None]


class Mutant(Eager):
    """The eager backend, while its `faults` stand in for what they replace. Override either step for other faults."""

    name = "mutant"
    faults: tuple[tuple[Any, str, Any], ...] = ()

    @contextmanager
    def broken(self) -> Iterator[None]:
        patches = [mock.patch.object(owner, attribute, fault) for owner, attribute, fault in self.faults]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    def forward(self, call: Call, **options: Any) -> Results:
        with self.broken():
            return super().forward(call, **options)

    def backward(self, call: Gradient) -> Grads:
        with self.broken():
            return super().backward(call)


@dataclass(frozen=True)
class Row:
    """A mutant and the name of the check that must reject it."""

    mutant: type[Mutant]
    rejected_by: str


ROWS: list[Row] = []


def rejected_by(check: str) -> Callable[[type[Mutant]], type[Mutant]]:
    def add(mutant: type[Mutant]) -> type[Mutant]:
        ROWS.append(Row(mutant, check))
        return mutant

    return add


def faulty(check: str, name: str, *faults: tuple[Any, str, Any]) -> None:
    """A mutant that only replaces functions."""
    ROWS.append(Row(type(name, (Mutant,), {"faults": faults}), check))
