"""Channels that are large in many tokens of many layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..base import Finding, Measurement, Rule, Urgency, broken, listed
from ..tokens import Tokens

LARGE, TOKENS, LAYERS = 6.0, 0.06, 0.25


class OutlierChannels(Measurement):
    """Of y, which the next sublayer's matrix multiplies."""

    name = "outlier_channels"
    title = "outlier channels"
    formula = "count of channels with |y| >= 6 in at least 6 % of tokens; warned of where in at least 25 % of sites"
    source = "Dettmers et al. 2022 (LLM.int8), arXiv:2208.07339"
    healthy = "0"
    rules = (
        Rule(
            0,
            above=True,
            heuristic=False,
            urgency=Urgency.NOTE,
            meaning="Outlier channels: 8-bit quantisation by rows or tensors loses the other channels.",
            action="Quantise these channels apart (LLM.int8) or smooth them into the weights (SmoothQuant).",
        ),
    )
    whole = True

    def __init__(self) -> None:
        self.large: Tensor | None = None
        self.tokens = 0

    def update(self, tokens: Tokens) -> None:
        large = (tokens.y.abs() >= LARGE).sum(0).cpu()
        self.large = large if self.large is None else self.large + large
        self.tokens += len(tokens.y)

    @property
    def channels(self) -> list[int]:
        if self.large is None or not self.tokens:
            return []
        return torch.nonzero(self.large >= TOKENS * self.tokens).flatten().tolist()

    @property
    def value(self) -> float | None:
        return len(self.channels) if self.tokens else None

    def details(self) -> dict[str, Any]:
        return {"channels": self.channels}

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        seen = Counter(channel for site in sites.values() for channel in site.details()["channels"])
        common = sorted(channel for channel, count in seen.items() if count >= LAYERS * len(sites))
        yield from broken(cls, "", len(common), f"channels {listed(common)}")
