"""What a claim is, and what its experiment gives: plain data, for the terminal, for a page and for JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..plot import Plot

Verdict = Literal["right", "loose", "wrong", "contested"]
SIGMAS = 5  # half a band, in standard deviations: one honest number in two million falls outside


@dataclass(frozen=True)
class Number:
    """A measured number, what it is expected to be, and the band in which it has to lie."""

    name: str
    value: float
    expected: float | None  # None: reported, and nothing is claimed of it
    low: float
    high: float
    why: str  # where the expected value and the band come from

    @property
    def holds(self) -> bool:
        return self.low <= self.value <= self.high

    @property
    def judged(self) -> bool:
        """Whether anything is claimed of it."""
        return math.isfinite(self.low) or math.isfinite(self.high)


def near(name: str, value: float, expected: float, tolerance: float, why: str) -> Number:
    """A number that lies within `tolerance` of what is expected.

    >>> near("a third", 0.34, 1 / 3, 0.01, "arithmetic").holds
    True
    """
    return Number(name, value, expected, expected - tolerance, expected + tolerance, why)


def within_factor(name: str, value: float, expected: float, factor: float, why: str) -> Number:
    """A number that lies between expected / factor and expected * factor.

    >>> within_factor("a third", 0.5, 1 / 3, 1.2, "arithmetic").holds
    False
    """
    return Number(name, value, expected, expected / factor, expected * factor, why)


def reported(name: str, value: float, why: str) -> Number:
    """A number that is shown and not judged."""
    return Number(name, value, None, -math.inf, math.inf, why)


@dataclass(frozen=True)
class Evidence:
    """What an experiment gave."""

    numbers: tuple[Number, ...]
    plot: Plot

    @property
    def holds(self) -> bool:
        return all(number.holds for number in self.numbers)


@dataclass(frozen=True)
class Claim:
    """Something commonly said of Add & Norm, what is true, and the experiment that shows it."""

    number: int
    name: str  # one word or two, for the command line
    title: str
    text: str  # as it is commonly put
    verdict: Verdict
    truth: str
    formula: str
    source: str
    run: Callable[[int], Evidence]  # of a seed: the same seed gives the same numbers

    def to_dict(self, evidence: Evidence) -> dict[str, Any]:
        """The claim and its numbers, for JSON; an open band, and what is not expected, are None."""
        words = {key: getattr(self, key) for key in ("number", "name", "title", "text", "verdict", "truth")}
        numbers = [vars(number) | {"holds": number.holds} for number in evidence.numbers]
        return words | {"formula": self.formula, "source": self.source, "holds": evidence.holds, "numbers": numbers}


def generator(seed: int) -> torch.Generator:
    """A source of random numbers of its own: torch's stays as it is."""
    return torch.Generator().manual_seed(seed)


def values(tensor: torch.Tensor) -> tuple[float, ...]:
    """A vector as a curve's values."""
    return tuple(tensor.tolist())
