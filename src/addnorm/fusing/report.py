"""What became of each norm call of a model: plain data that prints well."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..words import count

EMPTY = "its tensors were empty"


@dataclass(frozen=True)
class Outcome:
    """One norm call: which, and whether it is fused."""

    norm: str  # path of the module that called the norm
    call: int  # 0 for this module's first norm call in a pass through the model
    kind: str  # "layer" or "rms"; "" where no call was seen
    fused: bool
    folded: tuple[str, ...] = ()  # what the fused call took in: "branch_bias", "dropout", ..., "add"
    stream: bool = False  # whether the sum is used elsewhere too, as in pre-norm
    plain: bool = False  # whether it runs as a fused norm alone, there being no sum before it
    reason: str = ""  # why it is not fused with a sum
    backend: str = ""  # which backend took the call when it was verified

    def __str__(self) -> str:
        name = f"{self.norm or '(the model itself)'}{f' [call {self.call}]' if self.call else ''}"
        if self.plain:
            return f"plain  {name}: {self.kind} norm alone ({self.backend}), {self.reason}"
        if not self.fused:
            return f"left   {name}: {self.reason}"
        parts = " + ".join((*self.folded, f"{self.kind} norm"))
        stream = ", the sum lives on" if self.stream else ""
        backend = f" ({self.backend})" if self.backend else ""
        return f"fused  {name}: {parts}{stream}{backend}{f', {self.reason}' if self.reason else ''}"


@dataclass
class Report:
    """Every norm call of a model, in order of execution. Complete after the first call of the model."""

    mode: str = ""  # the mode that runs
    own: int = 0  # AddNorm modules of the model, which are fused as they are written and are not among the outcomes
    outcomes: dict[tuple[str, int], Outcome] = field(default_factory=dict)
    complete: bool = False  # whether the model has been called
    breaks: tuple[str, ...] = ()  # why parts of the model could not be captured
    drawn: bool = False  # whether dropouts beside the sites are drawn by the kernels too

    def record(self, outcome: Outcome) -> None:
        """Keep the outcome; of one call captured more than once (train and eval, say) the one that ran last
        counts, but not one without rows, which tells nothing."""
        place = outcome.norm, outcome.call
        if outcome.reason != EMPTY or place not in self.outcomes:
            self.outcomes[place] = outcome

    @property
    def sites(self) -> list[Outcome]:
        return list(self.outcomes.values())

    @property
    def fused(self) -> int:
        return sum(outcome.fused for outcome in self.sites)

    @property
    def plain(self) -> int:
        """Norms without a sum before them that run as one fused norm; they are among the skipped."""
        return sum(outcome.plain for outcome in self.sites)

    @property
    def skipped(self) -> int:
        return len(self.sites) - self.fused

    def to_dict(self) -> dict[str, Any]:
        """``{"fused": int, "skipped": int, "sites": [...], "breaks": [...], "drawn": bool, "mode": str, "own": int}``,
        for JSON."""
        sites = [{**asdict(outcome), "folded": list(outcome.folded)} for outcome in self.sites]
        return {
            "fused": self.fused,
            "skipped": self.skipped,
            "sites": sites,
            "breaks": list(self.breaks),
            "drawn": self.drawn,
            "mode": self.mode,
            "own": self.own,
        }

    def hint(self) -> str:
        """What is there without fusing, in a model that is written with this library."""
        if not self.own:
            return ""
        runs = "runs" if self.own == 1 else "run"
        return f"its {count(self.own, 'AddNorm module')} {runs} fused as written: nothing is left to fuse there"

    def __str__(self) -> str:
        if not self.outcomes and not self.breaks:
            first = "the first call of the model" if self.mode else "the model is compiled, not taken from a cache"
            when = "" if self.complete else f" yet: the report is complete after {first}"
            return f"no norm calls seen{when}{f'; {hint}' if (hint := self.hint()) else ''}"
        alone = f", {self.plain} more run as a plain norm" if self.plain else ""
        mode = f" (mode {self.mode})" if self.mode else ""
        lines = [f"{self.fused} of {count(len(self.outcomes), 'norm call')} fused with their sum{alone}{mode}"]
        lines += [f"  {outcome}" for outcome in self.sites]
        lines += [f"  {self.hint()}"] if self.own else []
        lines += ["  dropouts beside the sites are drawn by the kernels too"] if self.drawn else []
        lines += [f"  not captured in one piece: {reason}" for reason in self.breaks]
        return "\n".join(lines)
