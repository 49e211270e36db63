"""Channels that the norm's gain turns off."""

from __future__ import annotations

from typing import Any

import torch

from ..base import Measurement, Rule, Urgency, listed
from ..tokens import Tokens

SHARE = 0.01


class DeadChannels(Measurement):
    """gamma is the gain as it acts: weight_offset + weight."""

    name = "dead_channels"
    title = "dead channels"
    formula = "count of channels with |gamma| < 0.01 x the median of |gamma|"
    source = "a channel with gamma = 0 is its constant beta; the limit is a rule of thumb"
    healthy = "0"
    rules = (
        Rule(
            0,
            above=True,
            heuristic=True,
            urgency=Urgency.NOTE,
            meaning="Dead channels: the next sublayer sees a constant there.",
            action="Prunable where beta is small too; in training, weight decay on gamma or a bad initialisation.",
        ),
    )

    def __init__(self) -> None:
        self.channels: list[int] | None = None
        self.beta: list[float] = []

    def update(self, tokens: Tokens) -> None:
        if tokens.gain is None:
            return
        size = tokens.gain.abs()
        self.channels = torch.nonzero(size < SHARE * size.median()).flatten().tolist()
        self.beta = [] if tokens.bias is None else tokens.bias[self.channels].tolist()

    @property
    def value(self) -> float | None:
        return None if self.channels is None else len(self.channels)

    def details(self) -> dict[str, Any]:
        return {"channels": self.channels or [], "beta": self.beta}

    def evidence(self) -> str:
        beta = f", |beta| up to {max(map(abs, self.beta)):.3g}" if self.beta else ""
        return f"channels {listed(self.channels or [])}{beta}"
