"""Sums over batches in memory that does not grow: means, histograms, and the few largest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT = 8  # the worst tokens that are named


@dataclass(frozen=True)
class Where:
    """Which tokens some rows belong to."""

    batch: int
    sequence: Tensor  # (rows,)
    position: Tensor

    def __getitem__(self, chosen: Tensor) -> Where:
        return Where(self.batch, self.sequence[chosen], self.position[chosen])


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


class Ratios:
    """Bins of equal ratio, for what is not negative: from 2^-64 to 2^64, a factor of 1.19 wide; 0 falls into the
    lowest."""

    per_octave, size = 4, 512

    def index(self, values: Tensor) -> Tensor:
        return values.log2() * self.per_octave + self.size // 2

    def edge(self, index: float) -> float:
        return 2.0 ** ((index - self.size // 2) / self.per_octave)


class Cosines:
    """Bins of equal width from -1 to 1."""

    size = 40

    def index(self, values: Tensor) -> Tensor:
        return (values + 1) * (self.size / 2)

    def edge(self, index: float) -> float:
        return 2 * index / self.size - 1


class Histogram:
    """Counts of values in bins."""

    def __init__(self, bins: Ratios | Cosines) -> None:
        self.scale = bins
        self.counts = torch.zeros(bins.size, dtype=torch.long)
        self.smallest, self.largest = math.inf, -math.inf

    def add(self, values: Tensor) -> None:
        if not values.numel():
            return
        last = self.scale.size - 1
        index = self.scale.index(values).floor().nan_to_num(nan=0.0, neginf=0.0, posinf=last).clamp(0, last).long()
        self.counts += torch.bincount(index, minlength=last + 1).cpu()
        self.smallest = min(self.smallest, float(values.min()))
        self.largest = max(self.largest, float(values.max()))

    def bins(self) -> list[list[float]]:
        """``[lower edge, count]`` of each bin that has any."""
        return [[self.scale.edge(i), int(self.counts[i])] for i in self.counts.nonzero().flatten().tolist()]

    def quantile(self, share: float) -> float | None:
        """To the middle of a bin; the ends are exact."""
        total = int(self.counts.sum())
        if total == 0:
            return None
        index = int((self.counts.cumsum(0) >= share * total).nonzero()[0])
        return min(max(self.scale.edge(index + 0.5), self.smallest), self.largest)

    def summary(self) -> dict[str, Any]:
        shares = {"p05": 0.05, "p50": 0.5, "p95": 0.95}
        ends = {"min": self.smallest, "max": self.largest} if int(self.counts.sum()) else {"min": None, "max": None}
        return {**ends, **{name: self.quantile(share) for name, share in shares.items()}, "bins": self.bins()}


class Worst:
    """The few largest values (or smallest), and which token they belong to."""

    def __init__(self, *, smallest: bool = False) -> None:
        self.sign = -1 if smallest else 1
        self.kept: list[dict[str, Any]] = []

    def add(self, values: Tensor, where: Where, **more: Tensor) -> None:
        """`more` says more of each value, its "channel" for example."""
        if not values.numel():
            return
        chosen = (self.sign * values).topk(min(KEPT, values.numel())).indices
        columns = {"sequence": where.sequence, "position": where.position, **more, "value": values}
        found = zip(*(column[chosen].tolist() for column in columns.values()), strict=True)
        self.kept += [{"batch": where.batch, **dict(zip(columns, row, strict=True))} for row in found]
        self.kept = sorted(self.kept, key=lambda entry: -self.sign * entry["value"])[:KEPT]

    def words(self, most: int = KEPT // 2) -> str:
        return "; ".join(f"{entry['value']:.4g} at {place(entry)}" for entry in self.kept[:most])


class PerToken:
    """One number for each token: the mean, how they are spread, and the worst."""

    def __init__(self, *, smallest: bool = False, bins: Ratios | Cosines | None = None) -> None:
        self.mean, self.spread, self.worst = Mean(), Histogram(bins or Ratios()), Worst(smallest=smallest)

    def add(self, values: Tensor, where: Where, **more: Tensor) -> None:
        """Values that are NaN, as those of a token without a direction, are left out."""
        known = ~values.isnan()
        if not known.all():
            values, where, more = values[known], where[known], {name: each[known] for name, each in more.items()}
        self.mean.add(values)
        self.spread.add(values)
        self.worst.add(values, where, **more)

    def details(self) -> dict[str, Any]:
        return {"tokens": self.spread.summary(), "worst": self.worst.kept}


def place(entry: dict[str, Any]) -> str:
    """Where one of the worst is, in words.

    >>> place({"batch": 0, "sequence": 2, "position": 5, "value": 1.0})
    'batch 0, sequence 2, token 5'
    """
    names = {"batch": "batch", "sequence": "sequence", "position": "token", "channel": "channel"}
    return ", ".join(f"{word} {entry[name]}" for name, word in names.items() if name in entry)
