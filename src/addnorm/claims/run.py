"""Runs the experiments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .base import Claim, Evidence


@dataclass(frozen=True)
class Explanation:
    """Claims, each with what its experiment gave."""

    claims: tuple[tuple[Claim, Evidence], ...]

    def to_dict(self) -> dict[str, Any]:
        return {"claims": [claim.to_dict(evidence) for claim, evidence in self.claims]}


def explain(claims: Sequence[Claim], progress: Callable[[str, int, int], None], seed: int = 0) -> Explanation:
    """Each claim's experiment in turn: seconds each on a CPU, the same numbers for the same seed."""
    found = []
    for done, claim in enumerate(claims):
        progress(f"claim {claim.number}: {claim.title}", done, len(claims))
        found.append((claim, claim.run(seed)))
    return Explanation(tuple(found))
