"""A model's call, captured: what Dynamo traces is rewritten, tried once, then run operation by operation."""

from __future__ import annotations

import inspect
import types
import warnings
from collections import Counter
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from torch.nn.modules import module as module_file

from .report import Outcome, Report
from .rewrite import rewritten
from .sites import Site, find_sites
from .trial import Trial

ROOT = "L['model']"  # how Dynamo names the argument of `traced` that the model is
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
NUMBERS = count()
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


class FusedCall:
    """What a fused model has in place of its call; see `addnorm.fuse` for what it promises."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.report = Report()
        self.handle: Any = None
        self.captures = 0
        self._open: list[Piece] = []
        self._seen: Counter[str] = Counter()
        self._first = True
        self._versions: dict[tuple[int, ...], str] = {}
        self._hooks: list[dict[int, Any]] = []
        self._owners: dict[int, str] = {}
        self._breaks = Counter(counters["graph_break"])
        self.look_over()
        self._compiled = torch.compile(traced(model), backend=self.rewrite, **isolation())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Dynamo's guards do not watch hooks: a name for the set of them, which is guarded, makes it trace again.
        hooks = tuple(chain.from_iterable(self._hooks))
        version = self._versions.setdefault(hooks, str(len(self._versions)))
        result = self._compiled(version, *args, **kwargs)
        if self._open or self._first:
            self.settle()
        return result

    def look_over(self) -> None:
        """Note the model's modules: where their hooks are kept, and whose each parameter is."""
        modules = dict(self.model.named_modules())
        self._hooks = [getattr(module, name) for module in modules.values() for name in HOOKS]
        self._hooks += [getattr(module_file, name) for name in GLOBAL_HOOKS]
        self._owners = {id(p): name for name, m in modules.items() for p in m.parameters(recurse=False)}

    def rewrite(self, module: GraphModule, _: list[Any]) -> Callable[..., Any]:
        """Dynamo's backend: the captured piece, ready to run."""
        self.look_over()
        self.captures += 1
        piece = Piece(module, self.named, self.report.record)
        if not piece.trials and not piece.others:
            return module.forward
        self._open.append(piece)
        return lambda *args: piece.run(*args)

    def named(self, site: Site, weight: Tensor | None) -> tuple[str, int]:
        """The path of the module that called a norm, and how many norm calls it made before in this pass.

        A piece that serves several modules is traced with no path: then the weight tells whose call it is.
        """
        stack = site.norm.result.meta.get("nn_module_stack") or {}
        name = next((entry[0] for entry in reversed(stack.values())), "")
        name = name[len(ROOT) :].lstrip(".") if name.startswith(ROOT) else self._owners.get(id(weight), name)
        self._seen[name] += 1
        return name, self._seen[name] - 1

    def settle(self) -> None:
        """After a pass: what was tried and agrees is trusted from now on."""
        self._seen.clear()
        self._open = [piece for piece in self._open if not piece.close()]
        if not self._first:
            return
        self._first = False
        new = Counter(counters["graph_break"]) - self._breaks
        self.report.breaks = tuple(summary(reason) for reason in new)
        for name in unseen(self.model, self.report):
            reason = "not in the captured code: not called, or written in a way that is not recognised"
            self.report.record(Outcome(name, 0, "", fused=False, reason=reason))
        if not self.report.fused:
            name = type(self.model).__name__
            warnings.warn(f"addnorm.fuse found nothing to fuse in {name}: {self.report}", stacklevel=4)


class Piece:
    """A captured graph: under trial at first, then with its trusted sites fused for good."""

    def __init__(self, module: GraphModule, named: Callable, record: Callable) -> None:
        self.module = module
        inner = [part for part in module.modules() if isinstance(part, GraphModule)]
        sites = [site for part in inner for site in find_sites(part.graph)]
        self.trials = {site: Trial(site, named, record) for site in sites if site.plain or not site.reason}
        self.others = [site for site in sites if site not in self.trials]

        def left_alone(site: Site) -> Callable[[Tensor | None], None]:
            def note(weight: Tensor | None) -> None:
                name, call = named(site, weight)
                record(Outcome(name, call, site.norm.kind, fused=False, reason=site.reason))

            return note

        watch = {site: left_alone(site) for site in self.others}
        self.run = rewritten(module, {site: trial.run for site, trial in self.trials.items()}, watch).forward

    def close(self) -> bool:
        """Whether every site has been judged; then the fused calls stand in the graph themselves."""
        trials = self.trials.values()
        if any(trial.reason is None for trial in trials):
            return False
        for trial in trials:
            trial.open = False
        self.run = rewritten(self.module, {trial.site: trial.fused for trial in trials if trial.passed}, {}).forward
        return True


def traced(model: nn.Module) -> Callable[..., Any]:
    """The function that Dynamo traces, with a code object and a name of its own: Dynamo keeps its cache by the one, and
    by the other which numbers have varied. So a model's neighbour, with another eps, say, leaves no trace in it."""

    def call(version: str, *args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    code = call.__code__.replace(co_name=f"fused_call_{next(NUMBERS)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def isolation() -> dict[str, Any]:
    """Options of newer torch: no cache shared with other compiled functions, and room for many variants."""
    wanted = {"isolate_recompiles": True, "recompile_limit": 64}
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in wanted.items() if name in known}


def unseen(model: nn.Module, report: Report) -> list[str]:
    """The model's norm modules of which no call was seen."""
    called = {name for name, _ in report.outcomes}
    norms = {name for name, module in model.named_modules() if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))}
    return sorted(norms - called)


def summary(reason: str) -> str:
    """The first lines of Dynamo's explanation, as one."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return " ".join(lines[:3])
