"""Channels whose gain or bias stands out, in the same place through the layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..base import Finding, Measurement, Rule, Urgency, broken, listed
from ..tokens import Tokens

SIGMAS, LAYERS = 3.0, 0.5


class GammaOutliers(Measurement):
    """Standard deviations are biased, over one norm's channels. A norm whose gains are all equal has none."""

    name = "gamma_outliers"
    title = "gamma, beta outliers"
    formula = (
        "count of channels whose gamma or beta is more than 3 standard deviations from its mean; "
        "warned of where the same channel stands out in at least half of the sites (and in 2)"
    )
    source = "Kovaleva et al. 2021 (BERT Busters), arXiv:2105.06990; half of the sites is a rule of thumb"
    healthy = "a few at a site (0.3 % of a Gaussian's lie there), none that repeats"
    rules = (
        Rule(
            0,
            above=True,
            heuristic=True,
            urgency=Urgency.NOTE,
            meaning="The same channels stand out in gamma or beta through the layers: the model leans on them.",
            action="Do not prune, clip or coarsely quantise them: disabling them is known to break such models.",
        ),
    )
    whole = True

    def __init__(self) -> None:
        self.gain: Tensor | None = None
        self.bias: Tensor | None = None

    def update(self, tokens: Tokens) -> None:
        self.gain, self.bias = tokens.gain, tokens.bias

    @property
    def channels(self) -> list[int]:
        return sorted({*outliers(self.gain), *outliers(self.bias)})

    @property
    def value(self) -> float | None:
        return None if self.gain is None else len(self.channels)

    def details(self) -> dict[str, Any]:
        return {"channels": self.channels, "gamma": quantiles(self.gain), "beta": quantiles(self.bias)}

    @classmethod
    def findings(cls, sites: Mapping[str, Measurement]) -> Iterator[Finding]:
        seen = Counter(channel for site in sites.values() for channel in site.details()["channels"])
        fewest = max(2, LAYERS * len(sites))
        common = sorted(channel for channel, count in seen.items() if count >= fewest)
        yield from broken(cls, "", len(common), f"channels {listed(common)}")


def outliers(values: Tensor | None) -> list[int]:
    if values is None:
        return []
    far = (values - values.mean()).abs() > SIGMAS * values.std(correction=0)
    return torch.nonzero(far).flatten().tolist()


def quantiles(values: Tensor | None) -> dict[str, float] | None:
    if values is None:
        return None
    shares = {"min": 0.0, "p05": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}
    found = torch.quantile(values, torch.tensor(list(shares.values()), dtype=values.dtype, device=values.device))
    return dict(zip(shares, found.tolist(), strict=True))
