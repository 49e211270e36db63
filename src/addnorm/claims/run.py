"""Runs the experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..progress import Progress
from .base import Claim, Evidence


@dataclass(frozen=True)
class Explanation:
    """Claims, each with what its experiment gave."""

    claims: tuple[tuple[Claim, Evidence], ...]

    def to_dict(self) -> dict[str, Any]:
        return {"claims": [claim.to_dict(evidence) for claim, evidence in self.claims]}


def explain(claims: Sequence[Claim], progress: Progress, seed: int = 0) -> Explanation:
    """Each claim's experiment in turn: seconds each on a CPU, the same numbers for the same seed.

    On one thread: the tensors are small, and threads that wait for each other on a busy machine cost many times what
    they gain.
    """
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for done, claim in enumerate(claims):
            progress(f"claim {claim.number}: {claim.title}", done, len(claims))
            found.append((claim, claim.run(seed)))
    finally:
        torch.set_num_threads(threads)
    return Explanation(tuple(found))
