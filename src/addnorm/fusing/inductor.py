"""Mode "inductor": the sites are tried as in mode "eager", then the model is compiled with those that agree fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from .arrays import copy_quietly
from .callers import Callers
from .captured import Captured
from .eager import EagerCall
from .fuse_pass import FusePass
from .report import Report
from .sites import Site


class TriedPass(FusePass):
    """A `FusePass` that leaves alone what was tried and did not agree, and tells the report what is Inductor's."""

    def __init__(self, report: Report, callers: Callers) -> None:
        super().__init__()
        self.report, self.callers = report, callers

    def objection(self, site: Site) -> str:
        tried = self.outcomes(site)
        return super().objection(site) or next((outcome.reason for outcome in tried if not outcome.fused), "")

    def note(self, site: Site, objection: str, faster: str, calls: Counter[str]) -> None:
        for outcome in self.outcomes(site) if objection or faster else ():
            self.report.record(replace(outcome, backend="inductor", reason=outcome.reason or faster))

    def outcomes(self, site: Site) -> list[Any]:
        """Those of the module that calls the norm."""
        name = self.callers.path(site.norm.result)
        return [outcome for outcome in self.report.sites if outcome.norm == name]


class InductorCall(EagerCall):
    """The model, compiled by Inductor with its sites fused; see `addnorm.fuse` for what it promises."""

    mode = "inductor"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._compiled = Captured(model, self.compile)

    def entry(self) -> Captured:
        """At first what tries the sites, and for what a backward then recomputes: its forward was tried, too."""
        recomputing = torch._C._current_graph_task_id() >= 0
        tries = self._open or not self.report.complete or (recomputing and not self._compiled.done)
        return super().entry() if tries else self._compiled

    def compile(self, module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Dynamo's backend."""
        from torch._inductor.compile_fx import compile_fx  # takes seconds, and warns about torch itself

        self.look_over()
        copy_quietly(module.graph)
        self.captures += 1
        TriedPass(self.report, self.callers)(module.graph)
        module.recompile()
        compiled: Any = compile_fx(module, inputs)
        return self.noted(compiled)
