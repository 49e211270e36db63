"""Sums over batches in memory that does not grow: means, histograms, and the few largest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

KEPT = 8  # the worst tokens that are named
PER_OCTAVE, OCTAVES = 4, 64  # bins of a histogram: 2^-64 to 2^64, a factor of 1.19 wide


class Mean:
    """The mean of all values given, None before any."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.sum())
        self.count += values.numel()

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class Histogram:
    """Counts of positive values in bins of equal ratio; 0 falls into the lowest."""

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * OCTAVES * PER_OCTAVE, dtype=torch.long)
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, values: Tensor) -> None:
        if not values.numel():
            return
        size = len(self.counts)
        index = (values.log2() * PER_OCTAVE).floor() + size // 2
        index = index.nan_to_num(nan=0.0, neginf=0.0, posinf=size - 1.0).clamp(0, size - 1).long()
        self.counts += torch.bincount(index, minlength=size).cpu()
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))

    def bins(self) -> list[list[float]]:
        """``[lower edge, count]`` of each bin that has any."""
        middle, filled = len(self.counts) // 2, self.counts.nonzero().flatten().tolist()
        return [[2.0 ** ((i - middle) / PER_OCTAVE), int(self.counts[i])] for i in filled]

    def quantile(self, share: float) -> float | None:
        """To the middle of a bin, 9 % off at most; the ends are exact."""
        total = int(self.counts.sum())
        if total == 0:
            return None
        index = int((self.counts.cumsum(0) >= share * total).nonzero()[0])
        middle = 2.0 ** ((index - len(self.counts) // 2 + 0.5) / PER_OCTAVE)
        return min(max(middle, self.smallest), self.largest)

    def summary(self) -> dict[str, Any]:
        shares = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
        ends = {"min": self.smallest, "max": self.largest} if int(self.counts.sum()) else {"min": None, "max": None}
        return {**ends, **{name: self.quantile(share) for name, share in shares.items()}, "bins": self.bins()}


class Worst:
    """The few largest values (or smallest), and which token they belong to."""

    def __init__(self, *, smallest: bool = False) -> None:
        self.sign = -1 if smallest else 1
        self.kept: list[dict[str, Any]] = []

    def add(self, values: Tensor, places: dict[str, Tensor], batch: int) -> None:
        """`places` has, for each of the values, its "sequence", its "position", its "channel"..."""
        count = min(KEPT, values.numel())
        chosen = (self.sign * values).topk(count).indices if count else []
        for i in chosen:
            place = {name: int(tensor[i]) for name, tensor in places.items()}
            self.kept.append({"batch": batch, **place, "value": float(values[i])})
        self.kept = sorted(self.kept, key=lambda entry: -self.sign * entry["value"])[:KEPT]
