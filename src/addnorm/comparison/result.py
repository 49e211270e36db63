"""What the comparison found: plain data, for the terminal, for a page and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..machine import Machine


@dataclass(frozen=True)
class Row:
    """One placement. The gradients are those of each layer's feed-forward matrices at initialisation, the first layer
    first."""

    name: str
    algebra: tuple[str, ...]
    parameters: int  # of its norms and scales, in the whole toy model
    reads: float  # of tensors (..., d), per sublayer, by the sums and norms of a forward
    writes: float
    gradients: tuple[float, ...]
    losses: tuple[float, ...]  # after the toy task, one for each seed

    @property
    def loss(self) -> float | None:
        """The median over the seeds; None where nothing was trained."""
        return median(self.losses) if self.losses else None

    @property
    def spread(self) -> float | None:
        """The largest of the gradients over the smallest; None where that is 0."""
        return max(self.gradients) / min(self.gradients) if min(self.gradients) else None


@dataclass(frozen=True)
class Comparison:
    """All placements on one toy model."""

    rows: tuple[Row, ...]
    layers: int
    width: int
    steps: int
    seeds: int
    chance: float  # the loss of who guesses
    machine: Machine
    seconds: float  # that all of it took

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready types, the derived numbers among them."""
        result = asdict(self)
        for row, entry in zip(self.rows, result["rows"], strict=True):
            entry.update(loss=row.loss, spread=row.spread)
        return result
