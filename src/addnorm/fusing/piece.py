"""One captured graph: its sites under trial at first, then fused for good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from .callers import Callers
from .dropout import has_drawn
from .fast_path import REASON, fast_layers
from .report import Outcome, Report
from .rewrite import rewritten
from .sites import Site, fusible_sites
from .trial import Trial


class Piece:
    """A captured graph: under trial at first, then with its trusted sites fused for good."""

    def __init__(self, module: GraphModule, callers: Callers, report: Report) -> None:
        self.module, self.report = module, report
        self.told: dict[tuple[str, int], Outcome] = {}  # what became of its norm calls
        inner = [part for part in module.modules() if isinstance(part, GraphModule)]
        sites = [site for part in inner for site in fusible_sites(part.graph, checkpointed=part is not module)]
        self.trials = {site: Trial(site, callers.named, self.record) for site in sites if site.plain or not site.reason}
        self.others = [site for site in sites if site not in self.trials]
        self.closed = not sites
        for path in (callers.path(layer) for part in inner for layer in fast_layers(part.graph)):
            for norm in ("norm1", "norm2"):
                self.record(Outcome(f"{path}.{norm}".lstrip("."), 0, "layer", fused=False, reason=REASON))

        def left_alone(site: Site) -> Callable[[Tensor | None], None]:
            def note(weight: Tensor | None) -> None:
                if self.closed:  # while another thread runs what was under trial
                    return
                name, call = callers.named(site.norm.result, weight)
                self.record(Outcome(name, call, site.norm.kind, fused=False, reason=site.reason))

            return note

        watch = {site: left_alone(site) for site in self.others}
        targets = {site: trial.run for site, trial in self.trials.items()}
        tried = rewritten(module, targets, watch)
        self.has_drawn = has_drawn(tried)
        self._forward: Callable[..., Any] = tried.forward

    def run(self, *args: Any) -> Any:
        self.tell_again()
        return self._forward(*args)

    def record(self, outcome: Outcome) -> None:
        self.told[outcome.norm, outcome.call] = outcome
        self.report.record(outcome)

    def tell_again(self) -> None:
        """Let the report tell of this capture, where another one of the same calls ran since: with other types, say."""
        told = [*self.told.values()]
        if told and self.report.outcomes.get((told[0].norm, told[0].call)) is not told[0]:
            for outcome in told:
                self.report.record(outcome)

    def close(self) -> bool:
        """Whether every site has been judged; then the fused calls stand in the graph themselves."""
        trials = self.trials.values()
        if any(trial.reason is None for trial in trials):
            return False
        self.closed = True  # before the trials are: a pass that is not counted to its end is not counted on
        for trial in trials:
            trial.open = False
        targets = {trial.site: trial.fused for trial in trials if trial.passed}
        self._forward = rewritten(self.module, targets, {}).forward
        return True
